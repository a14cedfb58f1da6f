"""What a map varies and differentiates, on any module that looks like an ``EnvironmentModule``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_gp.environments import Environments, count_of, examples_of
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.trainability.recording import Recorded, Step, layout, recorded, tensors_of


def check_objective(objective: Any) -> None:
    """Refuses what a map cannot train.

    Raises:
        TypeError: if the module lacks ``training_loss`` and ``trained_parameters``, or has no rate α that is known.
        ValueError: if its objective changes with the number of steps, which only a Trainer counts.
    """
    for name in ("training_loss", "trained_parameters", "network_parameters"):
        if not hasattr(objective, name):
            raise TypeError(
                f"{type(objective).__name__} has no {name}(); a map trains an EnvironmentModule, such as MAML, FOMAML, "
                "ANIL, BOIL, GradientPenalty or IRMv1, or your subclass of it."
            )
    rate_name(objective)
    if getattr(objective, "anneal_steps", 0):
        raise ValueError(
            f"anneal_steps={objective.anneal_steps} changes the penalty during training, so that α would not be one "
            "number; set anneal_steps=0 for a map."
        )


def rate_name(objective: Any) -> str:
    """What α is: ``"inner_lr"``, ``"coefficient"`` or ``"penalty_weight"``.

    Raises:
        TypeError: if the module has none of these.
    """
    for attribute, name in (("inner_rates", "inner_lr"), ("coefficients", "coefficient"), ("penalty_weight",) * 2):
        if hasattr(objective, attribute):
            return name
    raise TypeError(
        f"{type(objective).__name__} has no inner_rates, coefficients or penalty_weight for the map's α to be put in."
    )


def set_rate(objective: Any, rate: float) -> None:
    """Puts α in: the inner rate of all adapted parameters, the coefficient of all groups, or the penalty weight."""
    name = rate_name(objective)
    if name == "inner_lr":
        objective.inner_rates.initial = dict.fromkeys(objective.inner_rates.initial, rate)
        with torch.no_grad():
            for learned in objective.inner_rates.parameters():
                learned.fill_(rate)
    elif name == "coefficient":
        objective.coefficients = dict.fromkeys(objective.coefficients, rate)
    else:
        objective.penalty_weight = rate


def rates_of(objective: Any) -> tuple[float, ...]:
    """The numbers that α is in force with."""
    name = rate_name(objective)
    if name == "penalty_weight":
        return (objective.penalty_weight,)
    return tuple((objective.inner_rates.initial if name == "inner_lr" else objective.coefficients).values())


class Evaluation(Protocol):
    """The training objective of a batch and its gradient by ``objective.trained_parameters()``."""

    def __call__(self, batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        """Value and gradients."""

    def confirm(self, batches: list[Environments], loss: Tensor) -> None:
        """Raises an error if ``loss`` is not what the objective gives."""


def value_and_gradients(objective: Any) -> Evaluation:
    """How a map evaluates an objective, recorded after some calls.

    A module made with ``compile=True`` gets its written-out gradient compiled once for all α.
    """
    if getattr(objective, "compile_step", False) and not objective.inner_rates.learned:
        return _Compiled(objective)
    inputs = objective.trained_parameters()

    def evaluate(batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        loss = objective.training_loss(batches)
        return loss.detach(), list(torch.autograd.grad(loss, inputs, materialize_grads=True))

    def whole(batches: list[Environments]) -> bool:
        return inputs[0].device.type == "cpu" and hasattr(objective, "pieces") and len(objective.pieces(batches)) == 1

    return Recorded(evaluate, inputs, lambda: rates_of(objective), whole)


class _Compiled:
    """MAML's gradient with α as a tensor: one compilation serves all cells.

    What is compiled is the recording, for which the compiler need not watch the module's attributes in each call.
    """

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.parameters = {name: value.detach() for name, value in objective.network_parameters().items()}
        self.names = [name for name, value in objective.network_parameters().items() if value.requires_grad]
        self.steps: dict[Hashable, Step] = {}

    def _step(self, rate: Tensor, environments: Environments, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        module = self.objective
        result = meta_gradient(
            module.loss,
            dict(zip(self.parameters, parameters, strict=True)),
            environments.support,
            examples_of(environments, "query"),
            dict.fromkeys(module.inner_rates.initial, rate),
            module.inner_steps,
            first_order=module.first_order,
            adapted=module.adapted,
            traceable=True,
        )
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
        some = next(iter(self.parameters.values()))
        rate = some.new_tensor(next(iter(self.objective.inner_rates.initial.values())))
        total = float(sum(count_of(environments) for environments in batches))
        sums: list[Tensor] = []
        for piece in self.objective.pieces(batches):
            found = self._evaluated(rate, piece)
            sums = list(torch._foreach_add(sums, found)) if sums else found
        loss, *gradients = torch._foreach_div(sums, total)
        return loss, gradients

    def confirm(self, batches: list[Environments], loss: Tensor) -> None:
        """Nothing to do: tests compare the compiled gradient with autograd, up to rounding."""
