"""Rates of the outer optimizer, and its schedulers as Lightning wants to be told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler as schedulers

from lightning_gp import checks
from lightning_gp.types import LRSchedulerCallable, SchedulerConfig

PER_STEP = (schedulers.OneCycleLR, schedulers.CyclicLR)
"""Made for a number of optimizer steps, and not of epochs."""


def check_scheduler(lr_scheduler: SchedulerConfig | LRSchedulerCallable | None) -> None:
    """Refuses what is neither a function of an optimizer nor such a dictionary.

    Raises:
        TypeError: if there is no function.
        ValueError: naming a key that is unknown.
    """
    if isinstance(lr_scheduler, Mapping):
        unknown = sorted(set(lr_scheduler) - set(SchedulerConfig.__annotations__))
        if unknown or "scheduler" not in lr_scheduler:
            raise ValueError(
                f"lr_scheduler={dict(lr_scheduler)!r}: a dictionary holds 'scheduler', a function of the optimizer, "
                f"and of 'interval', 'frequency', 'monitor', 'strict', 'name' what is wanted; unknown are {unknown}."
            )
        checks.choice(("step", "epoch"), interval=lr_scheduler.get("interval", "epoch"))
        checks.whole(1, frequency=lr_scheduler.get("frequency", 1))
        checks.function(lr_scheduler=lr_scheduler["scheduler"])
    elif lr_scheduler is not None:
        checks.function(lr_scheduler=lr_scheduler)


def scheduler_config(
    lr_scheduler: SchedulerConfig | LRSchedulerCallable, optimizer: torch.optim.Optimizer, validates: bool
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns of a scheduler.

    Args:
        lr_scheduler: builds it, or a ``SchedulerConfig`` that says more.
        optimizer: whose rate it changes.
        validates: whether the run has validation, so that a plateau is one of ``val/loss``; else of ``train/loss``.

    Returns:
        Lightning's dictionary. Those made for a number of steps (``OneCycleLR``, ``CyclicLR``) are stepped after each,
        unless the config says otherwise.
    """
    given: dict[str, Any] = dict(lr_scheduler) if isinstance(lr_scheduler, Mapping) else {"scheduler": lr_scheduler}
    scheduler = given.pop("scheduler")(optimizer)
    if isinstance(scheduler, Mapping):  # the function's own dictionary
        given = dict(scheduler)
        scheduler = given.pop("scheduler")
    config: dict[str, Any] = {"scheduler": scheduler, "interval": "step" if _per_step(scheduler) else "epoch"}
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        config["monitor"] = "val/loss" if validates else "train/loss"
    return {**config, **given}


def _per_step(scheduler: object) -> bool:
    inner = (
        scheduler._schedulers if isinstance(scheduler, (schedulers.SequentialLR, schedulers.ChainedScheduler)) else []
    )
    return isinstance(scheduler, PER_STEP) or any(map(_per_step, inner))


def outer_rate(optimizer: torch.optim.Optimizer) -> float:
    """The largest rate of an optimizer's groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def with_rate(optimizer: torch.optim.Optimizer, rate: float) -> torch.optim.Optimizer:
    """The optimizer with ``rate`` as its largest rate; groups of other rates keep their proportion."""
    factor = rate / outer_rate(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"]) * factor
    optimizer.defaults["lr"] = rate
    return optimizer
