"""Callbacks that measure gradients, linearity and curvature on any LightningModule.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CosineSimilarity": "cosine_similarity",
        "GradientNorm": "gradient_norm",
        "HessianEigenvalues": "hessian_eigenvalues",
        "LearningRateBounds": "learning_rate_bounds",
        "PhaseAmplitudeConsistency": "phase_amplitude_consistency",
        "Probe": "base",
    },
)
