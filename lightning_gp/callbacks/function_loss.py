"""The loss of a module that knows nothing of environments: its ``training_step``, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from lightning_gp._lightning import LightningModule, takes
from lightning_gp.callbacks.batches import copied, example_count
from lightning_gp.callbacks.loss_checks import STEPS, THREE_WAYS
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss, Indexed, ModuleLoss, Skipped
from lightning_gp.callbacks.shards import gradients_of_shards, spread
from lightning_gp.contracts import MeasuresEnvironments
from lightning_gp.types import Parameters, Split

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss_fn(module, batch)``: a scalar, or one loss per environment (E,)."""


class FunctionLoss(ModuleLoss[Indexed]):
    """The first and the third way: a function of the module and a batch, run as it is.

    Nothing is swapped: weights that the function reaches in whatever way (a list made in ``__init__``, the optimizer's
    groups, a loss object that holds the head) are the ones that are differentiated by.
    """

    live = True

    def __init__(self, module: LightningModule, function: Callable[[Any, Any, int], Any], name: str) -> None:
        super().__init__(module)
        self.function, self.name = function, name
        self.scalar = name in STEPS

    def parameters(self) -> Parameters:
        """θ, with trainable tensors that only an optimizer knows."""
        found = super().parameters()
        known = {id(value) for value in self.module.parameters()}
        optimizers = self.module._trainer.optimizers if self.module._trainer is not None else []
        groups = (
            (f"optimizer_{i}.{j}", group)
            for i, each in enumerate(optimizers)
            for j, group in enumerate(each.param_groups)
        )
        for name, group in groups:
            for k, value in enumerate(group["params"]):
                if id(value) not in known and value.requires_grad:
                    found[f"{name}.{k}"] = value
                    known.add(id(value))
        return found

    def pieces(self, batch: object, index: int = 0) -> list[Indexed]:
        """The whole batch."""
        return [Indexed(batch, index)]

    def count(self, piece: Indexed) -> int:
        """Number of examples."""
        return example_count(piece.batch) or 1

    def losses(self, parameters: Parameters, piece: Indexed, split: Split = "query") -> Tensor:
        """The function's value at the module's own parameters."""
        # A step may change its batch in place.
        losses = self.checked(self.function(self.module, copied(piece.batch), piece.position), self.name)
        self.scalar = losses.ndim == 0
        thawed = super().parameters().keys() - parameters.keys()
        if thawed:
            raise ValueError(
                f"{self.name} thaws parameters while it runs: {', '.join(sorted(thawed)[:5])}. A probe differentiates "
                "by those that require gradients before; set requires_grad in a hook, such as on_train_batch_start."
            )
        return losses

    def gradients(self, parameters: Parameters, piece: Indexed, split: Split = "query") -> Parameters:
        """Of sharded parameters ``Parts``, of the losses of all processes one after the other; every process calls it.

        Of a scalar loss then: the sum over processes of its gradient times ``count(piece)``.
        """
        if not spread(self.module):
            return super().gradients(parameters, piece, split)
        return gradients_of_shards(
            lambda: self.losses(parameters, piece, split).reshape(-1),
            parameters,
            self.module,
            lambda: self.count(piece) if self.scalar else None,
        )


def find_loss(module: LightningModule, loss_fn: LossFunction | None, owner: str) -> AnyLoss:
    """The loss of any LightningModule.

    Args:
        module: the module.
        loss_fn: the user's choice, or None.
        owner: name of the callback that asks.

    Raises:
        ValueError: if there is no way; the message names all three.
    """
    if loss_fn is not None:
        return FunctionLoss(module, lambda module, batch, index: loss_fn(module, batch), "loss_fn")
    if isinstance(module, MeasuresEnvironments):
        return EnvironmentLoss(module)
    if not module.automatic_optimization:
        raise ValueError(
            f"{owner} cannot tell what {type(module).__name__} minimises: with automatic_optimization=False its "
            f"training_step steps the optimizers itself and must not be run by a probe. {THREE_WAYS}"
        )
    if takes(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{owner} cannot run {type(module).__name__}.training_step(dataloader_iter), which fetches its own data. "
            f"{THREE_WAYS}"
        )
    return FunctionLoss(module, _training_step, "training_step")


def _training_step(module: LightningModule, batch: object, index: int) -> Any:
    """What Lightning calls, as Lightning calls it."""
    with_index = takes(module.training_step, "batch_idx", min_args=2)
    return loss_of(module.training_step(batch, index) if with_index else module.training_step(batch))


def loss_of(output: Any) -> Any:
    """The loss in what a step returns: the tensor itself, or the one under ``"loss"``.

    Raises:
        Skipped: if it is None.
    """
    if output is None:
        raise Skipped
    return output["loss"] if isinstance(output, Mapping) and "loss" in output else output
