"""``lightning-gp data``: looks at the data of a config, without model or trainer."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import LightningDataModule
from lightning_gp.datamodules import FewShotDataModule, ImageClassDataModule
from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.images.image_cache import cache_file, decode_all

_SHOWN = 20  # broken files that are listed


def main(args: Sequence[str]) -> None:
    """Runs ``check`` or ``show``; the options of the data behind them are those of ``lightning-gp fit``.

    Raises:
        SystemExit: with status 1 if ``check`` finds broken files.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-gp data",
        description="Looks at the data of a config. Options such as --data.root=DIR override the config's.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,show}")
    check = commands.add_parser("check", help="classes and images of each split, size, cache, broken files")
    show = commands.add_parser("show", help="draws an episode")
    for command in (check, show):
        command.add_argument("--config", required=True, type=Path, help="YAML file with a section `data`")
    show.add_argument("--output", type=Path, default=Path("episode.png"), help="picture to write")
    show.add_argument("--split", choices=SPLITS, default="train")
    show.add_argument("--index", type=int, default=0, help="number of the episode")
    options, rest = parser.parse_known_args(list(args))
    data = data_module(options.config, rest)
    if options.command == "show":
        if not isinstance(data, FewShotDataModule):
            raise TypeError(f"{type(data).__name__} has no images to show; use a few-shot data module.")
        data.prepare_data()
        data.show_episode(options.split, options.index, options.output)
        print(f"Wrote {options.output}.")
    elif print_report(data):
        sys.exit(1)


def data_module(config: Path, overrides: Sequence[str] = ()) -> Any:
    """The data module of a config file for ``lightning-gp fit``; its other sections are not looked at.

    Args:
        config: YAML file.
        overrides: words such as ``--data.root=DIR``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no section ``data``, or the section is wrong.
    """
    import yaml  # type: ignore[import-untyped]
    from jsonargparse import ArgumentParser

    import lightning_gp.datamodules as datamodules

    if not config.is_file():
        raise FileNotFoundError(f"There is no config file {config}.")
    try:
        content = yaml.safe_load(config.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML file: {error}") from error
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"{config} has no section `data`; it needs one, as for `lightning-gp fit`.")
    for name in datamodules.__all__:  # known classes can be named without their path
        getattr(datamodules, name)
    parser = ArgumentParser(prog="lightning-gp data", exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    section = content["data"]
    words = [f"--data={section if isinstance(section, str) else json.dumps(section)}", *overrides]
    try:
        parsed = parser.parse_args(words)
    except (argparse.ArgumentError, SystemExit) as error:
        raise ValueError(f"{config}: the section `data` does not fit: {error}") from error
    return parser.instantiate(parsed).data


def print_report(data: Any) -> int:
    """Prints what ``lightning-gp data check`` is for, decoding every image on the way.

    Returns:
        The number of broken files.

    Raises:
        TypeError: if the data are no images in classes.
    """
    if not isinstance(data, ImageClassDataModule):
        raise TypeError(
            f"{type(data).__name__} has no image files to check; use an image data set, such as ClassFolderDataModule."
        )
    source, decoding = data.find_source(), data.decoding()
    counts = dict(source.counts)
    splits = data.checked_splits(list(counts))
    broken = [image for image in decode_all(source, decoding, "Checking") if image.error is not None]
    damage = Counter(image.name for image in broken)
    print(f"{type(data).__name__}: {source.origin}")
    rows = [("split", "classes", "images", "smallest class", "largest class", "broken")]
    for split, names in splits.items():
        few, many = min(names, key=counts.__getitem__), max(names, key=counts.__getitem__)
        images, bad = sum(counts[name] for name in names), sum(damage[name] for name in names)
        rows.append(
            (split, str(len(names)), str(images), f"{few} ({counts[few]})", f"{many} ({counts[many]})", str(bad))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if outside := sum(counts.values()) - sum(counts[name] for names in splits.values() for name in names):
        print(f"  {outside} images are in classes of no split.")
    if data.min_images is not None:
        small = [name for names in splits.values() for name in names if counts[name] < data.min_images]
        print(f"  {len(small)} classes have fewer than min_images={data.min_images} images and are left out.")
    print(f"decoded to: {decoding.size}×{decoding.size}, {'grey' if decoding.grey else 'colour'}")
    path = cache_file(source, decoding, data.cache_path(), data.cache_name)
    print(f"cache:      {path} ({f'{path.stat().st_size / 1e6:.1f} MB' if path.exists() else 'not built yet'})")
    print(f"broken:     {len(broken)} of {sum(counts.values())} images")
    for image in broken[:_SHOWN]:
        print(f"  {image.error}")
    if len(broken) > _SHOWN:
        print(f"  … and {len(broken) - _SHOWN} more")
    return len(broken)
