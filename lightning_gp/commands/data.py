"""``lightning-gp data``: looks at the data of a config, without model or trainer."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from lightning_gp._lightning import LightningDataModule
from lightning_gp.commands.names import main as list_names
from lightning_gp.datamodules import FewShotDataModule, ImageClassDataModule
from lightning_gp.datamodules.images.image_cache import cache_file, decode_all
from lightning_gp.runs.command import command
from lightning_gp.runs.config import found_config, known_classes

_SHOWN = 20  # broken files that are listed


def main(args: Sequence[str]) -> None:
    """Runs ``check`` or ``show``, or lists the data modules; the options of the data are those of ``lightning-gp fit``.

    Raises:
        SystemExit: with status 1 if ``check`` finds broken files, or classes that are too small.
    """
    if not args:
        list_names(["data"])
        print("lightning-gp data check and lightning-gp data show look at data; --help behind one says more.")
    else:
        args = [*args[:1], *(["--config"] if args[1:] and args[1][0] != "-" else []), *args[1:]]
        command({"check": check, "show": show}, "lightning-gp data", args, rest="words")


def check(config: Path | None = None, words: Sequence[str] = ()) -> None:
    """Counts classes and images of each split, decodes every image, and says whether episodes can be drawn.

    Options such as --data.root=DIR override the config's, or stand for it: --data=CUBDataModule --data.root=cub.

    Args:
        config: a YAML file with a section `data`, or a folder of images.
        words: options of the data.
    """
    if print_report(data_module(config, words)):
        sys.exit(1)


def show(
    config: Path | None = None,
    words: Sequence[str] = (),
    output: Path = Path("episode.png"),
    split: Literal["train", "val", "test"] = "train",
    index: int = 0,
) -> None:
    """Draws an episode; options such as --data.root=DIR override the config's.

    Args:
        config: a YAML file with a section `data`, or a folder of images.
        words: options of the data.
        output: picture to write.
        split: which.
        index: number of the episode.
    """
    data = data_module(config, words)
    if not isinstance(data, FewShotDataModule):
        raise TypeError(f"{type(data).__name__} has no images to show; use a few-shot data module.")
    data.prepare_data()
    data.show_episode(split, index, output)
    print(f"Wrote {output}.")


def data_module(config: Path | None, overrides: Sequence[str] = ()) -> Any:
    """The data module of a config file for ``lightning-gp fit``, whose other sections are not looked at.

    Args:
        config: YAML file; a folder stands for ``ClassFolderDataModule`` of it, None for what ``overrides`` say.
        overrides: words such as ``--data.root=DIR``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no section ``data``, or the section is wrong.
    """
    from jsonargparse import ArgumentParser

    known_classes()
    parser = ArgumentParser(prog="lightning-gp data", exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    words = [*_section(config), *overrides]
    try:
        parsed = parser.parse_args(words)
    except (argparse.ArgumentError, SystemExit) as error:
        raise ValueError(f"{config or ' '.join(overrides)}: the section `data` does not fit: {error}") from error
    return parser.instantiate(parsed).data


def _section(config: Path | None) -> list[str]:
    if config is None:
        return []
    if config.is_dir():
        return ["--data=ClassFolderDataModule", f"--data.root={config}"]
    path = found_config(config)
    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {config}, and no folder of that name.")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML file: {error}") from error
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"{config} has no section `data`; it needs one, as for `lightning-gp fit`.")
    section = content["data"]
    return [f"--data={section if isinstance(section, str) else json.dumps(section)}"]


def print_report(data: Any) -> int:
    """Prints what ``lightning-gp data check`` is for, decoding every image on the way.

    Returns:
        The number of broken files, and of splits from which no episode could be drawn.

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
    return len(broken) + _print_episodes(data, counts, splits)


def _print_episodes(data: ImageClassDataModule, counts: Mapping[str, int], splits: Mapping[str, Sequence[str]]) -> int:
    """Says what `fit` would refuse only after the images are decoded."""
    needed, small = data.shots + data.queries, 0
    print(f"episodes:   {data.ways} classes of {data.shots} + {data.queries} = {needed} images each")
    for split, names in splits.items():
        kept = [name for name in names if data.min_images is None or counts[name] >= data.min_images]
        few = [name for name in kept if counts[name] < needed]
        if few:
            least = min(counts[name] for name in few)
            print(
                f"  {split}: {len(few)} of {len(kept)} classes have fewer, down to {least}; `fit` will refuse. Lower "
                f"--data.shots or --data.queries to {least} together, or leave these out: --data.min_images={needed}"
            )
        elif len(kept) < data.ways:
            print(f"  {split}: {len(kept)} classes, fewer than --data.ways={data.ways}; `fit` will refuse.")
        small += bool(few or len(kept) < data.ways)
    return small
