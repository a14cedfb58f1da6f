"""Callbacks that measure gradients, linearity and curvature on any LightningModule.

The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CosineSimilarity": "cosine_similarity",
    "GradientNorm": "gradient_norm",
    "HessianEigenvalues": "hessian_eigenvalues",
    "LearningRateBounds": "learning_rate_bounds",
    "PhaseAmplitudeConsistency": "phase_amplitude_consistency",
    "Probe": "base",
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
