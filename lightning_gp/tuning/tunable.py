"""What the tuner takes as an objective, and the one pair of rates that it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from lightning_gp.contracts import Adapts, Objective
from lightning_gp.modules.schedulers import outer_rate
from lightning_gp.trainability.objective import rate_of


class Tunable(Objective, Protocol):
    """An objective with an outer optimizer, with or without an inner loop."""

    def configure_optimizers(self) -> Any:
        """As Lightning wants it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that the module holds."""


def check_tunable(module: Tunable) -> tuple[float | None, float]:
    """Refuses what has no single α and β to tune; returns the module's own, None for α where there is no inner loop.

    Raises:
        ValueError: if it has several inner rates, an inner optimizer, or several outer optimizers.
    """
    outer = outer_rate(only_optimizer(module))
    if not isinstance(module, Adapts):
        return None, outer
    if module.inner_loop().direction == "ascent" or module.inner_loop().normalize:
        raise ValueError(
            "The tuner seeks the largest inner rate at which training improves, for inner descent; the rate of "
            "an ascent, and a radius (normalize), say how much to guard against: choose it by validation."
        )
    rates = set(rate_of(module).get())
    if len(rates) > 1:
        raise ValueError(
            f"inner_lr has {len(rates)} values, {sorted(rates)}, and the tuner looks for one; give one number, tune, "
            "and scale the values by what it suggests."
        )
    return float(next(iter(rates))), outer


def only_optimizer(module: Tunable) -> torch.optim.Optimizer:
    """What ``configure_optimizers`` builds, without schedulers.

    Raises:
        ValueError: if there is not exactly one optimizer.
    """
    found: object = module.configure_optimizers()
    if isinstance(found, dict):
        found = found.get("optimizer")
    elif isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found = found[0]
    if isinstance(found, (list, tuple)) and len(found) == 1:
        found = found[0]
    if not isinstance(found, torch.optim.Optimizer):
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers gives no single optimizer, so there is no one outer rate "
            "to tune; let it return one optimizer, alone or with a scheduler."
        )
    return found
