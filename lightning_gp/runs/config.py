"""Modules and data modules from configs: dicts of ``class_path`` and ``init_args``, as in a file for ``fit``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

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
    """Imports this package's modules and data modules, so that a config can name them without their path."""
    import lightning_gp.datamodules as datamodules
    import lightning_gp.modules as modules

    for package in (modules, datamodules):
        for name in package.__all__:
            getattr(package, name)


def data_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``data`` section of a YAML file for ``fit``, or all of a file that holds nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it names no data module.
    """
    import yaml  # type: ignore[import-untyped]

    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    config = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(config, dict) or "class_path" not in config:
        raise ValueError(
            f"{path} names no data module; it needs a section `data:` with class_path and init_args, as a config for "
            "`lightning-gp fit` has."
        )
    return config
