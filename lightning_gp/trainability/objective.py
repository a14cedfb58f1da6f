"""What a map varies and differentiates, on any module that looks like an ``EnvironmentModule``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gp.environments import Environments, count_of, examples_of
from lightning_gp.functional.adaptation import Parameters
from lightning_gp.functional.meta_gradient import meta_gradient

ValueAndGradients: TypeAlias = Callable[[list[Environments]], tuple[Tensor, list[Tensor]]]


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


def value_and_gradients(objective: Any) -> ValueAndGradients:
    """The training objective of a batch and its gradient by ``objective.trained_parameters()``.

    A module made with ``compile=True`` gets its written-out gradient compiled once for all α.
    """
    if getattr(objective, "compile_step", False) and not objective.inner_rates.learned:
        return _Compiled(objective)
    inputs = objective.trained_parameters()

    def evaluate(batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        loss = objective.training_loss(batches)
        return loss.detach(), list(torch.autograd.grad(loss, inputs, materialize_grads=True))

    return evaluate


class _Compiled:
    """MAML's gradient with α as a tensor: one compilation serves all cells."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.names = [name for name, value in objective.network_parameters().items() if value.requires_grad]
        self.step = torch.compile(self._step, dynamic=False)

    def _step(self, parameters: Parameters, environments: Environments, rate: Tensor) -> tuple[Tensor, list[Tensor]]:
        module = self.objective
        query = examples_of(environments, "query")
        result = meta_gradient(
            module.loss,
            parameters,
            environments.support,
            query,
            dict.fromkeys(module.inner_rates.initial, rate),
            module.inner_steps,
            first_order=module.first_order,
            adapted=module.adapted,
            traceable=True,
        )
        return result.losses.sum(), [result.parameters[name] for name in self.names]

    def __call__(self, batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        parameters = {name: value.detach() for name, value in self.objective.network_parameters().items()}
        some: nn.Parameter | Tensor = next(iter(parameters.values()))
        rate = some.new_tensor(next(iter(self.objective.inner_rates.initial.values())))
        total = sum(count_of(environments) for environments in batches)
        value: Any = 0.0
        sums: Any = None
        for piece in self.objective.pieces(batches):
            loss, gradients = self.step(parameters, piece, rate)
            value = value + loss
            sums = gradients if sums is None else torch._foreach_add(sums, gradients)
        return value / total, list(torch._foreach_div(sums, float(total)))
