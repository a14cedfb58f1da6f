"""The mathematics: pure functions of a dict of parameters and tensors.

The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Trajectory": "adaptation",
    "adapt": "adaptation",
    "amplitude_consistency": "linearity",
    "cosine_similarity": "gradients",
    "environment_gradients": "gradients",
    "gradient_norm": "gradients",
    "gradient_penalty": "penalties",
    "gradients_of_losses": "gradients",
    "hessian_eigenvalues": "curvature",
    "hessian_vector_product": "curvature",
    "irmv1_penalty": "penalties",
    "pairwise_cosines": "gradients",
    "phase_consistency": "linearity",
    "phase_loss": "linearity",
    "third_order_operators": "third_order",
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
