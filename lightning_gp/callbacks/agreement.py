"""Whether a probe's gradient is the one that training has, on the batch that was just trained."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gp._lightning import Callback, LightningModule, Trainer, callbacks_of
from lightning_gp.callbacks.losses import FunctionLoss, Indexed, ModuleLoss
from lightning_gp.functional.gradients import dense
from lightning_gp.types import Parameters

TOLERANCE = 1e-3
"""Relative error, far beyond rounding, of a parameter's gradient; with it ``FLOOR`` times the whole gradient's norm."""
FLOOR = 1e-5


def check_agreement(trainer: Trainer, loss: ModuleLoss, trained: Indexed, owner: str) -> None:
    """Refuses a loss whose gradient is another than training has left in ``.grad``, on the same batch and weights.

    That cannot be told where ``.grad`` holds more or something else (accumulation, several processes, lower precision,
    hooks that change gradients, manual optimization), nor where the gradient is another at every run: random numbers,
    or a state that the step moves on.

    Args:
        trainer: right before the optimizer's step.
        loss: of the module.
        trained: the batch, as it was before the step, and its index.
        owner: name of the callback that asks.

    Raises:
        ValueError: naming the parameters whose gradients differ.
        Skipped: if the module passes over this batch.
    """
    if not isinstance(loss, FunctionLoss) or loss.name != "training_step" or not _comparable(trainer, loss.module):
        return
    parameters = loss.parameters()
    left = {
        name: torch.zeros_like(value) if value.grad is None else dense(value.grad).clone()
        for name, value in parameters.items()
    }
    found = _gradient(loss, parameters, trained)
    wrong = _different(found, left)
    # A gradient that is another one when the same is run again says nothing.
    if wrong and not _different(found, _gradient(loss, parameters, trained)):
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ValueError(
            f"{owner} runs {type(loss.module).__name__}.training_step on the batch that was just trained, and gets "
            f"another gradient than training has in .grad, of {shown}. What it would log is not about this training. "
            "Compute the loss from the batch and the module's own parameters alone, or give the callback a loss_fn=...."
        )


def _gradient(loss: FunctionLoss, parameters: Parameters, trained: Indexed) -> Parameters:
    return {name: value.squeeze(0) for name, value in loss.gradients(parameters, trained).items()}


def _different(found: Parameters, wanted: Parameters) -> list[str]:
    norms = {name: _norm(value) for name, value in wanted.items()}
    floor = FLOOR * float(torch.tensor(list(norms.values()), dtype=torch.float64).norm())
    return [
        name
        for name, value in found.items()
        if not bool((value == wanted[name]).all()) and _norm(value - wanted[name]) > TOLERANCE * norms[name] + floor
    ]


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.detach()))


def _comparable(trainer: Trainer, module: LightningModule) -> bool:
    hooks = [type(module).on_after_backward, type(module).backward, type(module).on_before_backward]
    plain = [LightningModule.on_after_backward, LightningModule.backward, LightningModule.on_before_backward]
    own = any(name in vars(module) for name in ("on_after_backward", "backward", "on_before_backward"))
    others = any(type(each).on_after_backward is not Callback.on_after_backward for each in callbacks_of(trainer))
    return (
        module.automatic_optimization
        and trainer.accumulate_grad_batches == 1
        and trainer.world_size == 1
        and trainer.precision in ("32-true", "64-true")
        and hooks == plain
        and not own
        and not others
    )
