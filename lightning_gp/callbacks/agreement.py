"""Whether a probe's gradient is the one that training has, on the batch that was just trained."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_gp._lightning import Callback, LightningModule, Trainer, callbacks_of
from lightning_gp.callbacks.function_loss import FunctionLoss
from lightning_gp.callbacks.isolation import random_state, set_random_state
from lightning_gp.callbacks.losses import Indexed
from lightning_gp.callbacks.reach import Snapshot
from lightning_gp.callbacks.shards import spread
from lightning_gp.checks import first_of
from lightning_gp.functional.gradients import dense
from lightning_gp.types import Parameters

TOLERANCE = 1e-3
"""Relative error, far beyond rounding, of a parameter's gradient; with it ``FLOOR`` times the whole gradient's norm."""
FLOOR = 1e-5
HOOKS = ("on_after_backward", "on_before_backward", "backward")


class Before:
    """Remembers what a training step begins with: everything that it can reach, and the random numbers.

    Args:
        loss: of a module whose next step it waits for.
        apart: types of objects that are left alone.
    """

    def __init__(self, loss: FunctionLoss, apart: tuple[type, ...]) -> None:
        self.loss = loss
        self.snapshot: Snapshot | None = None
        self.random: tuple[Any, ...] = ()
        module = loss.module
        own, step = vars(module).get("training_step"), module.training_step

        # A step that takes its own shadow away: no hook runs between those of the batch and the step.
        @functools.wraps(step)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if own is None:
                vars(module).pop("training_step", None)
            else:
                vars(module)["training_step"] = own
            self.snapshot = Snapshot({"module": module}, apart)
            self.random = random_state(module.device)
            return step(*args, **kwargs)

        # Lightning looks one level deep for the step's arguments.
        remembered.__wrapped__ = getattr(step, "__wrapped__", step)
        remembered.__dict__["before"] = self
        vars(module)["training_step"] = remembered

    @classmethod
    def of(cls, trainer: Trainer, loss: FunctionLoss, apart: tuple[type, ...]) -> Before | None:
        """One for all probes; None where ``.grad`` would not be the gradient of that step alone.

        That is with accumulation, several processes, shards, lower precision, hooks that may change gradients, and
        manual optimization.
        """
        module = loss.module
        waiting = getattr(vars(module).get("training_step"), "before", None)
        if isinstance(waiting, Before):
            return waiting
        changed = any(getattr(type(module), name) is not getattr(LightningModule, name) for name in HOOKS)
        others = any(type(each).on_after_backward is not Callback.on_after_backward for each in callbacks_of(trainer))
        alone = module.automatic_optimization and trainer.accumulate_grad_batches == 1 and trainer.world_size == 1
        alone = alone and not spread(module)
        if loss.name != "training_step" or changed or others or vars(module).keys() & set(HOOKS) or not alone:
            return None
        return cls(loss, apart) if trainer.precision in ("32-true", "64-true") else None

    def gradient(self, trained: Indexed) -> Parameters | None:
        """Of the step as it was, by a probe's means; None if what it began with cannot be put back."""
        if self.snapshot is None:
            return None
        self.snapshot.put_back()
        if self.snapshot.changes():
            return None
        self.snapshot.lend()
        set_random_state(self.loss.module.device, self.random)
        parameters = self.loss.parameters()
        return {name: value.squeeze(0) for name, value in self.loss.gradients(parameters, trained).items()}


def check_agreement(before: Before, trained: Indexed, owner: str) -> None:
    """Refuses a loss whose gradient is another than training has left in ``.grad``, on the same batch and weights.

    Nothing is said where the gradient is another one whenever the same is run again.

    Args:
        before: what the step has begun with.
        trained: the batch, as it was before the step, and its index.
        owner: name of the callback that asks.

    Raises:
        ValueError: naming the parameters whose gradients differ.
        Skipped: if the module passes over this batch.
    """
    left = {
        name: torch.zeros_like(value) if value.grad is None else dense(value.grad).clone()
        for name, value in before.loss.parameters().items()
    }
    found = before.gradient(trained)
    wrong = _different(found, left) if found is not None else []
    again = before.gradient(trained) if wrong else None
    if found is not None and again is not None and not _different(found, again):
        module = type(before.loss.module).__name__
        shown = first_of(wrong)
        raise ValueError(
            f"{owner} runs {module}.training_step on the batch that was just trained, and gets another gradient than "
            f"training has in .grad, of {shown}. What it would log is not about this training. Compute the loss from "
            "the batch and the module's own parameters alone, or give the callback a loss_fn=...."
        )


def _different(found: Parameters, wanted: Parameters) -> list[str]:
    norms = {name: _norm(wanted[name]) for name in found if name in wanted}
    floor = FLOOR * float(torch.tensor(list(norms.values()), dtype=torch.float64).norm())
    return [
        name
        for name, norm in norms.items()
        if not torch.equal(found[name], wanted[name]) and _norm(found[name] - wanted[name]) > TOLERANCE * norm + floor
    ]


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.detach()))
