"""What is known in closed form: which learning rates converge, and what one inner step is best.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "adaptation_distance": "mixed_linear_regression",
        "adaptation_loss": "mixed_linear_regression",
        "adapted_features": "mixed_linear_regression",
        "critical_inner_lr": "learning_rates",
        "critical_inner_lr_with_tg": "third_order",
        "critical_outer_lr": "learning_rates",
        "critical_outer_lr_with_tg": "third_order",
        "effective_curvature": "learning_rates",
        "erm_solution": "mixed_linear_regression",
        "expected_adaptation_distance": "mixed_linear_regression",
        "expected_adaptation_loss": "mixed_linear_regression",
        "maml_solution": "mixed_linear_regression",
        "network_adaptation_lr": "optimal_adaptation",
        "optimal_adaptation_lr": "optimal_adaptation",
        "optimal_adaptation_lr_from_kernels": "optimal_adaptation",
        "solution_covariance": "mixed_linear_regression",
    },
)
