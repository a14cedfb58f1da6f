"""Trainability maps: the training loss over a grid of inner and outer learning rates, and where training diverges.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BatchStream": "stream",
        "CellTrainer": "engine",
        "Outcome": "engine",
        "TrainabilityMap": "map",
        "TrainabilityResult": "result",
        "decades": "grid",
        "merge": "storage",
        "parse_rates": "grid",
        "plot_map": "plot",
    },
)
