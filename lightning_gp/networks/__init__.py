"""Networks of the papers. Each has two submodules, ``body`` (features) and ``head`` (the last linear layer)."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ColoredMNISTMLP": "lightning_gp.networks.colored_mnist",
    "Conv4": "lightning_gp.networks.conv4",
    "SinusoidMLP": "lightning_gp.networks.sinusoid",
    "select_parameters": "lightning_gp.networks.parts",
    "use_batch_statistics": "lightning_gp.networks.parts",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
