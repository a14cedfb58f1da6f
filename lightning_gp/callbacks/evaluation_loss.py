"""The loss of any LightningModule on the batches of ``trainer.validate`` and ``trainer.test``."""

from __future__ import annotations

from typing import Any

from lightning_gp._lightning import LightningModule, takes
from lightning_gp.callbacks.function_loss import FunctionLoss, LossFunction, find_loss, loss_of
from lightning_gp.callbacks.loss_checks import THREE_WAYS
from lightning_gp.callbacks.losses import AnyLoss
from lightning_gp.contracts import MeasuresEnvironments


class EvaluationStep:
    """Runs ``validation_step`` or ``test_step`` as Lightning does, for the loss that it returns.

    ``training_step`` does not stand in for it: it may augment its batch, or want one of another kind.

    Args:
        name: of the step.

    Attributes:
        loader: what Lightning passes as ``dataloader_idx``; None where there is a single loader.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loader: int | None = None

    def __call__(self, module: LightningModule, batch: object, index: int) -> Any:
        """The loss; raises ``Skipped`` where the step returns None."""
        step = getattr(module, self.name)
        arguments = [batch, index] if takes(step, "batch_idx", min_args=2) else [batch]
        if self.loader is not None:
            arguments.append(self.loader)
        return loss_of(step(*arguments))


def find_evaluation_loss(
    module: LightningModule, loss_fn: LossFunction | None, owner: str, name: str
) -> tuple[AnyLoss, EvaluationStep | None]:
    """The loss of a module in evaluation: ``loss_fn``, ``environment_losses``, or what its own step returns.

    Args:
        module: the module.
        loss_fn: the user's choice, or None.
        owner: name of the callback that asks.
        name: ``"validation_step"`` or ``"test_step"``.

    Returns:
        The loss, and the step that it runs, if it runs one.

    Raises:
        ValueError: if the step fetches its own data.
    """
    if loss_fn is not None or isinstance(module, MeasuresEnvironments):
        return find_loss(module, loss_fn, owner), None
    if takes(getattr(module, name), "dataloader_iter", explicit=True):
        raise ValueError(
            f"{owner} cannot run {type(module).__name__}.{name}(dataloader_iter), which fetches its own data. Leave "
            f"episodes=None. {THREE_WAYS}"
        )
    step = EvaluationStep(name)
    return FunctionLoss(module, step, name), step


def no_loss(module: LightningModule, owner: str, name: str) -> ValueError:
    """The error for a step that returns None at its first batch."""
    return ValueError(
        f"{owner}(episodes=...) needs the loss of {type(module).__name__} in evaluation, but its {name} returns None. "
        f"Let {name} return the loss, or give the callback a function of (module, batch) as loss_fn=..., such as "
        "loss_fn=lambda module, batch: module.training_step(batch, 0), or leave episodes=None."
    )
