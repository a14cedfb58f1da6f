"""LightningModules: the algorithms."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ANIL": "maml",
    "BOIL": "maml",
    "ERM": "base",
    "EnvironmentModule": "base",
    "FOMAML": "maml",
    "GradientPenalty": "gradient_penalty",
    "IRMv1": "irm",
    "MAML": "maml",
    "NamedEnvironmentModule": "named",
    "REx": "irm",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
