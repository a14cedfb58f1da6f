"""What a map varies and differentiates, on any module that looks like an ``EnvironmentModule``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_gp.contracts import Adapts, Objective, Rate, Varies
from lightning_gp.environments import Environments, count_of
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.trainability.recording import Recorded, Step, layout, recorded, tensors_of


class Trainable(Objective, Varies, Protocol):
    """What a map trains: an objective with a rate."""


def rate_of(objective: object) -> Rate:
    """The rate α of an objective that a map can train.

    Raises:
        TypeError: if the module is no objective, or has no rate.
        ValueError: if its rate is not one number.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{type(objective).__name__} does not say what it minimises; a map trains an EnvironmentModule, such as "
            "MAML, FOMAML, ANIL, BOIL, GradientPenalty or IRMv1, or your subclass of it. Any other LightningModule is "
            "mapped over one of its hyperparameters: tuning.ModuleMap, or lightning-gp map --vary NAME --over …"
        )
    if not isinstance(objective, Varies):
        raise TypeError(
            f"{type(objective).__name__} has no rate() for the map's α to be put in, such as MAML's inner_lr, "
            "GradientPenalty's coefficient and IRMv1's penalty_weight; define it in a subclass."
        )
    rate = objective.rate()
    if rate.changes:
        raise ValueError(rate.changes)
    return rate


class Evaluation(Protocol):
    """The training objective of a batch and its gradient by ``objective.trained_parameters()``."""

    def __call__(self, batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        """Value and gradients."""

    def confirm(self, batches: list[Environments], loss: Tensor) -> None:
        """Raises an error if ``loss`` is not what the objective gives."""


def value_and_gradients(objective: Objective, rate: Rate | None) -> Evaluation:
    """How a map evaluates an objective, recorded after some calls.

    A module made with ``compile=True`` gets its written-out gradient compiled once for all α.

    Args:
        objective: what is trained.
        rate: α, ``rate_of(objective)``; None where it is not varied.
    """
    if rate is not None and isinstance(objective, Adapts) and objective.compile_step and not objective.learns_rates:
        return _Compiled(objective, rate)
    inputs = objective.trained_parameters()

    def evaluate(batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        loss = objective.training_loss(batches)
        return loss.detach(), list(torch.autograd.grad(loss, inputs, materialize_grads=True))

    def whole(batches: list[Environments]) -> bool:
        return inputs[0].device.type == "cpu" and len(objective.pieces(batches)) == 1

    return Recorded(evaluate, inputs, (lambda: ()) if rate is None else rate.get, whole)


class _Compiled:
    """MAML's gradient with α as a tensor: one compilation serves all cells.

    What is compiled is the recording, for which the compiler need not watch the module's attributes in each call.
    """

    def __init__(self, objective: Adapts, rate: Rate) -> None:
        self.objective, self.rate = objective, rate
        self.parameters = {name: value.detach() for name, value in objective.network_parameters().items()}
        self.names = [name for name, value in objective.network_parameters().items() if value.requires_grad]
        self.steps: dict[Hashable, Step] = {}

    def _step(self, rate: Tensor, environments: Environments, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parameters = dict(zip(self.parameters, values, strict=True))
        result = self.objective.meta_gradient(parameters, environments, rates=rate, function=meta_gradient)
        return result.losses.sum(), *(result.parameters[name] for name in self.names)

    def _evaluated(self, rate: Tensor, environments: Environments) -> list[Tensor]:
        tensors = tensors_of([environments])
        inputs = [rate, *self.parameters.values(), *tensors]
        key = layout(tensors)
        if key not in self.steps:
            graph = recorded(lambda rate, *rest: self._step(rate, environments, rest[: len(self.parameters)]), inputs)
            self.steps[key] = torch.compile(graph, dynamic=False)
        with torch.no_grad():
            return list(self.steps[key](*inputs))

    def __call__(self, batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        rate = next(iter(self.parameters.values())).new_tensor(self.rate.get()[0])
        total = float(sum(count_of(environments) for environments in batches))
        sums: list[Tensor] = []
        for piece in self.objective.pieces(batches):
            found = self._evaluated(rate, piece)
            sums = list(torch._foreach_add(sums, found)) if sums else found
        loss, *gradients = torch._foreach_div(sums, total)
        return loss, gradients

    def confirm(self, batches: list[Environments], loss: Tensor) -> None:
        """Nothing to do: tests compare the compiled gradient with autograd, up to rounding."""
