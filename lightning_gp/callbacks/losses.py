"""A module's loss as a function of its parameters, found in one of three ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp.environments import as_batches, chunks_of, count_of
from lightning_gp.functional.gradients import gradients_of_losses
from lightning_gp.types import Parameters

LossFunction = Callable[[Any, Any], Tensor]
"""``loss_fn(module, batch)``: a scalar, or one loss per environment (E,)."""

THREE_WAYS = (
    "A probe finds a loss in one of three ways: (1) loss_fn=..., given to the callback, a function of (module, batch) "
    "that returns a scalar or one loss per environment; (2) a method environment_losses(parameters, environments, "
    "split) of the module; (3) the module's own training_step, if it uses automatic optimization."
)


class ModuleLoss:
    """The losses of a module on pieces of a probe batch, with parameters of the caller's choice.

    Attributes:
        by_environment: whether the module speaks ``Environments``.
        scalar: whether the loss is one number for a whole batch; known after the first evaluation.
    """

    by_environment = False
    scalar = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def parameters(self) -> Parameters:
        """θ: the trainable parameters by name."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    def pieces(self, batch: Any) -> list[Any]:
        """The batch in parts that are computed at once."""
        return [batch]

    def count(self, piece: Any) -> int:
        """How much a piece weighs in a mean: its number of environments, or of examples."""
        return leading_size(piece) or 1

    def losses(self, parameters: Parameters, piece: Any, split: str = "query") -> Tensor:
        """One loss per environment (E,), or a scalar ()."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(parameters, piece, split).")

    def objectives(self, parameters: Parameters, piece: Any) -> Tensor:
        """What training minimises, shaped as ``losses``."""
        return self.losses(parameters, piece)

    def gradients(self, parameters: Parameters, piece: Any, split: str = "query") -> Parameters:
        """∇L_τ(θ) of each environment, tensors (E, *shape); E = 1 for a scalar loss."""
        return gradients_of_losses(lambda theta: self.losses(theta, piece, split).reshape(-1), parameters)


class EnvironmentLoss(ModuleLoss):
    """The second way: ``module.environment_losses``."""

    by_environment = True

    def parameters(self) -> Parameters:
        """The network's trainable parameters."""
        if not hasattr(self.module, "network_parameters"):
            return super().parameters()
        return {name: value for name, value in self.module.network_parameters().items() if value.requires_grad}

    def pieces(self, batch: Any) -> list[Any]:
        """Chunks of environments, cut as training cuts them where the module knows how."""
        batches = as_batches(batch)
        return list(self.module.pieces(batches)) if hasattr(self.module, "pieces") else list(batches)

    def count(self, piece: Any) -> int:
        """Number of environments."""
        return count_of(piece)

    def losses(self, parameters: Parameters, piece: Any, split: str = "query") -> Tensor:
        """(E,), at the unadapted parameters."""
        values = self.module.environment_losses(self.complete(parameters), piece, split)
        return _checked(values, "environment_losses", count_of(piece))

    def objectives(self, parameters: Parameters, piece: Any) -> Tensor:
        """(E,), adapted where the module adapts."""
        values = self.module.environment_objectives(self.complete(parameters), piece)
        return _checked(values, "environment_objectives", count_of(piece))

    def gradients(self, parameters: Parameters, piece: Any, split: str = "query") -> Parameters:
        """One environment at a time, so that E environments cost E forward and backward passes."""
        each = [
            gradients_of_losses(partial(self.losses, piece=one, split=split), parameters) for one in chunks_of(piece, 1)
        ]
        return {name: torch.cat([gradient[name] for gradient in each]) for name in parameters}

    def complete(self, parameters: Parameters) -> Parameters:
        """``parameters`` with the frozen parameters, which the network needs too."""
        if not hasattr(self.module, "network_parameters"):
            return {**dict(self.module.named_parameters()), **parameters}
        return {**self.module.network_parameters(), **parameters}


class FunctionLoss(ModuleLoss):
    """The first and the third way: a function of (module, batch), run with other parameters in the module's place."""

    def __init__(self, module: Any, function: LossFunction, name: str) -> None:
        super().__init__(module)
        self.function, self.name = function, name

    def losses(self, parameters: Parameters, piece: Any, split: str = "query") -> Tensor:
        """The function's value."""
        own = torch.utils._pytree.tree_map(copied, piece)  # a step may change its batch in place
        bound = _Bound(self.module, lambda module: self.function(module, own))
        swapped = {f"module.{name}": value for name, value in parameters.items()}
        losses = _checked(torch.func.functional_call(bound, swapped, ()), self.name)
        self.scalar = losses.ndim == 0
        return losses


class _Bound(nn.Module):
    """``functional_call`` swaps parameters for the time of a ``forward``; this makes any function one."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> Tensor:
        return self.function(self.module)


def find_loss(module: Any, loss_fn: LossFunction | None, owner: str) -> ModuleLoss:
    """The loss of any LightningModule.

    Args:
        module: the module.
        loss_fn: the user's choice, or None.
        owner: name of the callback that asks.

    Raises:
        ValueError: if there is no way; the message names all three.
    """
    if loss_fn is not None:
        return FunctionLoss(module, loss_fn, "loss_fn")
    if callable(getattr(module, "environment_losses", None)):
        return EnvironmentLoss(module)
    if not module.automatic_optimization:
        raise ValueError(
            f"{owner} cannot tell what {type(module).__name__} minimises: with automatic_optimization=False its "
            f"training_step steps the optimizers itself and must not be run by a probe. {THREE_WAYS}"
        )
    arguments = list(inspect.signature(module.training_step).parameters)
    if "dataloader_iter" in arguments:
        raise ValueError(
            f"{owner} cannot run {type(module).__name__}.training_step(dataloader_iter), which fetches its own data. "
            f"{THREE_WAYS}"
        )
    return FunctionLoss(module, _training_step(len(arguments) > 1), "training_step")


def _training_step(with_index: bool) -> LossFunction:
    def loss(module: Any, batch: Any) -> Any:
        output = module.training_step(batch, 0) if with_index else module.training_step(batch)
        return output["loss"] if isinstance(output, dict) and "loss" in output else output

    return loss


def _checked(losses: Any, name: str, environments: int | None = None) -> Tensor:
    """``losses`` in at least float32, if they are what was asked for: one for each of so many environments."""
    if not isinstance(losses, Tensor):
        raise ValueError(f"{name} returned {type(losses).__name__}; a probe needs a scalar loss tensor. {THREE_WAYS}")
    if name == "training_step" and losses.numel() == 1:
        losses = losses.reshape(())
    if losses.ndim > (0 if name == "training_step" else 1) or losses.numel() == 0:
        allowed = "a scalar" if name == "training_step" else "a scalar, or one loss per environment (E,)"
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(losses.shape)}; allowed is {allowed}: take its mean. "
            f"{THREE_WAYS}"
        )
    if environments is not None and losses.shape != (environments,):
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(losses.shape)} for {environments} environments; it must return "
            f"one loss per environment, shape ({environments},): take the mean over examples, not over environments."
        )
    if not losses.requires_grad:
        raise ValueError(
            f"The loss that {name} returned does not depend on the module's trainable parameters: there is nothing to "
            "measure. Compute it from them, without detach(), no_grad() or .item(), or pass another loss_fn=."
        )
    half = losses.dtype in (torch.float16, torch.bfloat16)
    checked: Tensor = losses.float() if half else losses
    return checked


def leading_size(batch: Any) -> int | None:
    """Size of the first axis of the first tensor in a nested batch that has one."""
    for leaf in torch.utils._pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    return None


def copied(leaf: Any) -> Any:
    """A copy of a tensor without its history; anything else as it is."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
