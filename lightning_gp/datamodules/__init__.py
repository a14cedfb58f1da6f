"""LightningDataModules whose batches are ``Environments``."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ColoredMNISTDataModule": "colored_mnist",
    "EpisodeDataModule": "base",
    "EpisodeDataset": "episodes",
    "EpisodeSampler": "episodes",
    "ExampleEnvironments": "example_environments",
    "FewShotDataModule": "few_shot",
    "LinearRegressionDataModule": "linear",
    "NamedEnvironmentsDataModule": "named_environments",
    "OmniglotDataModule": "omniglot",
    "SinusoidDataModule": "sinusoid",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
