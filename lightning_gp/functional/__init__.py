"""The mathematics: pure functions of a dict of parameters and tensors.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Trajectory": "adaptation",
        "adapt": "adaptation",
        "amplitude_consistency": "linearity",
        "approximation": "linearity",
        "cosine_similarity": "gradients",
        "environment_gradients": "gradients",
        "gradient_norm": "gradients",
        "gradient_penalty": "penalties",
        "gradients_of_losses": "gradients",
        "hessian_eigenvalues": "curvature",
        "hessian_vector_product": "curvature",
        "irmv1_penalty": "penalties",
        "linearised_adapt": "linearised",
        "output_divergence": "linearity",
        "ntk_features": "ntk",
        "ntk_kernels": "ntk",
        "pairwise_cosines": "gradients",
        "phase_consistency": "linearity",
        "phase_loss": "linearity",
        "prototype_agreement": "prototype",
        "prototype_cosine": "prototype",
        "prototype_scores": "prototype",
        "third_order_operators": "third_order",
    },
)
