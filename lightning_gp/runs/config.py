"""Modules and data modules from configs: dicts of ``class_path`` and ``init_args``, as in a file for ``fit``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning_gp
from lightning_gp.files import replacing

CONFIGS = Path(lightning_gp.__file__).parent / "configs"
"""Those that come with the package; ``examples/`` has links to them."""
Built = TypeVar("Built")


def built(base: type[Built], config: Mapping[str, Any]) -> Built:
    """The object of ``base``, such as ``LightningModule``, that ``config`` describes.

    Raises:
        ValueError: if the config does not fit the class.
    """
    import jsonargparse

    known_classes()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "object")
    try:
        parsed = parser.parse_object({"object": dict(config)})
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"The config of {config.get('class_path')} does not fit it: {error}") from error
    made: Built = parser.instantiate(parsed).object
    return made


def known_classes() -> None:
    """Imports what this package has of each kind, so that a config can name it without its path."""
    for kind in ("modules", "datamodules", "networks", "callbacks"):
        package = importlib.import_module(f"lightning_gp.{kind}")
        for name in package.__all__:
            getattr(package, name)


def found_config(config: str | os.PathLike[str]) -> Path:
    """The file itself, or the config of that name that comes with the package.

    Example:
        >>> found_config("sinusoid_maml").name
        'sinusoid_maml.yaml'
    """
    path = Path(config)
    packaged = CONFIGS / f"{path.stem}.yaml"
    return packaged if not path.exists() and path.parent == Path() and packaged.is_file() else path


def data_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``data`` section of a YAML file for ``fit``, or all of a file that holds nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it names no data module.
    """
    import yaml  # type: ignore[import-untyped]

    with open(found_config(path), encoding="utf-8") as file:
        content = yaml.safe_load(file)
    config = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(config, dict) or "class_path" not in config:
        raise ValueError(
            f"{path} names no data module; it needs a section `data:` with class_path and init_args, as a config for "
            "`lightning-gp fit` has."
        )
    return config


def save_beside(path: Path, text: str) -> Path:
    """Writes ``text`` whole or not at all; where ``path`` holds something else, under the next free numbered name.

    Args:
        path: where it belongs.
        text: the content.

    Returns:
        Where it is.
    """
    place, count = path, 0
    while place.is_file() and place.read_text("utf-8", errors="replace") not in ("", text):
        count += 1
        place = path.with_name(f"{path.stem}_{count}{path.suffix}")
    if place != path:
        print(f"{path} is the configuration of another run and stays; that of this one is {place}.", file=sys.stderr)
    if not place.is_file() or not place.stat().st_size:  # an older run was killed while it wrote
        with replacing(place) as temporary:
            temporary.write_text(text, "utf-8")
    return place


def check_encoding(args: Sequence[str]) -> None:
    """Refuses configurations that are no YAML in UTF-8.

    Raises:
        ValueError: naming the file, what is wrong and how to mend it.
    """
    words = [word.partition("=") for word in args]
    files = [after for name, equals, after in words if name == "--config" and equals]
    files += [after for before, after in zip(args, args[1:], strict=False) if before in ("--config", "-c")]
    for path in (Path(file) for file in files if Path(file).is_file()):
        content = path.read_bytes()
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not encoded in UTF-8 ({error.reason}); save it again as UTF-8.") from None
        if "\0" in "".join(lines):
            raise ValueError(f"{path} is not encoded in UTF-8 (it looks like UTF-16); save it again as UTF-8.")
        for number, line in enumerate(lines, 1):
            if "\t" in line[: len(line) - len(line.lstrip())]:
                raise ValueError(f"{path}, line {number}, is indented with a tab; YAML takes spaces only.")
