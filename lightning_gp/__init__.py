"""Gradient-based multi-environment learning for PyTorch Lightning.

The public names are imported when they are first used, so ``import lightning_gp`` is cheap and a missing optional
dependency hurts only whoever needs it.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ANIL": "lightning_gp.modules.maml",
    "BOIL": "lightning_gp.modules.maml",
    "ERM": "lightning_gp.modules.base",
    "EnvironmentModule": "lightning_gp.modules.base",
    "Environments": "lightning_gp.environments",
    "FOMAML": "lightning_gp.modules.maml",
    "GradientPenalty": "lightning_gp.modules.gradient_penalty",
    "IRMv1": "lightning_gp.modules.irm",
    "MAML": "lightning_gp.modules.maml",
    "REx": "lightning_gp.modules.irm",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
