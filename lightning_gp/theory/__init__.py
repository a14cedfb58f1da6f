"""What is known in closed form: which learning rates converge.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "critical_inner_lr": "learning_rates",
        "critical_inner_lr_with_tg": "third_order",
        "critical_outer_lr": "learning_rates",
        "critical_outer_lr_with_tg": "third_order",
        "effective_curvature": "learning_rates",
    },
)
