"""What is known in closed form: which learning rates converge.

The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "critical_inner_lr": "learning_rates",
    "critical_inner_lr_with_tg": "third_order",
    "critical_outer_lr": "learning_rates",
    "critical_outer_lr_with_tg": "third_order",
    "effective_curvature": "learning_rates",
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
