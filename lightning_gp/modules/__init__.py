"""LightningModules: the algorithms."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ANIL": "maml",
        "BOIL": "maml",
        "ERM": "erm",
        "EnvironmentModule": "base",
        "FOMAML": "maml",
        "GradientPenalty": "gradient_penalty",
        "IRMv1": "irm",
        "LIL": "lil",
        "LILPretraining": "lil_pretraining",
        "MAML": "maml",
        "NamedEnvironmentModule": "named",
        "REx": "irm",
    },
)
