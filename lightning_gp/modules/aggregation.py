"""Updates made of the gradients of environments one by one: weighted, masked, or whatever else is no mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gp.contracts import NamesEnvironments
from lightning_gp.environments import Environments
from lightning_gp.functional.held_constant import constant, recording_constants
from lightning_gp.functional.precomputed import Evaluated, precomputed
from lightning_gp.functional.processes import gather_over_processes, mean_of_processes
from lightning_gp.functional.weightings import WEIGHTINGS, gram_matrix
from lightning_gp.types import Parameters, Weighting


class Aggregate(NamedTuple):
    """What a step makes of the environments' gradients.

    Attributes:
        weights: of the objectives in the scalar that is logged as the training loss, (E,).
        update: what training descends along, by parameter name, (*shape).
    """

    weights: Tensor
    update: Parameters


def weighting_of(given: Any) -> Weighting | None:
    """The function that ``weighting=`` names; None for the mean.

    Raises:
        ValueError: if there is none of that name.
        TypeError: if it is neither a name nor a function.
    """
    if given == "mean":
        return None
    if isinstance(given, str):
        if given not in WEIGHTINGS:
            raise ValueError(
                f"weighting={given!r} is unknown; use one of {['mean', *WEIGHTINGS]}, or a function of the losses (E,) "
                "and the Gram matrix (E, E) of their gradients."
            )
        return WEIGHTINGS[given]
    if not callable(given):
        raise TypeError(f"weighting={given!r} must be a name or a function of losses (E,) and Gram matrix (E, E).")
    weighting: Weighting = given
    return weighting


def weights_of(weighting: Weighting, losses: Tensor, gradients: Parameters) -> Tensor:
    """w, (E,); with a derivative only while the Jacobian of the update is recorded.

    Raises:
        ValueError: if the weights are no vector of E numbers, or have no derivative where one is needed.
    """
    recording = recording_constants()
    gram = gram_matrix(gradients)
    with torch.set_grad_enabled(recording):
        weights = weighting(losses if recording else losses.detach(), gram if recording else gram.detach())
    name = getattr(weighting, "__name__", type(weighting).__name__)
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weighting: {name} gave {got}; it must give one weight per environment, ({len(losses)},).")
    if recording and not weights.requires_grad:
        raise ValueError(
            f"The weights of {name} have no derivative, so the Jacobian of the update is not known: it has a part from "
            "the weights. Leave out what measures it (LearningRateBounds, objective='training'), or write the "
            "weighting in differentiable torch, as 'group_dro' and 'pcgrad' are."
        )
    return weights.to(losses.device)


def with_update(objectives: Tensor, aggregate: Aggregate, parameters: Parameters) -> Tensor:
    """Objectives (E,) of constant value, whose mean is the weighted sum and has the update for its gradient.

    Args:
        objectives: (E,).
        aggregate: weights and update; both are held constant.
        parameters: θ, those of the update.
    """
    values = len(objectives) * constant(aggregate.weights.to(objectives) * objectives)
    steps = [
        (constant(update) * (parameters[name] - parameters[name].detach())).sum()
        for name, update in aggregate.update.items()
    ]
    return values + torch.stack(steps).sum()


def aggregated_terms(
    aggregate: Callable[[Tensor, Parameters], Aggregate],
    evaluation: Callable[[Environments], Evaluated],
    environments: Sequence[Environments],
    inputs: Mapping[str, Tensor],
    shared: bool,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The training loss with the aggregated update for its gradient, its terms, and the weights.

    Every process makes the update of all environments, from their gradients: those of its own and of the other
    processes or, where all share the examples of each, their means.

    Args:
        aggregate: makes the update.
        evaluation: the objective of one environment, and its gradients by ``inputs``.
        environments: one in each.
        inputs: what is trained, by name.
        shared: whether processes share the examples of every environment.
    """
    found = [evaluation(one) for one in environments]
    everywhere = mean_of_processes if shared else gather_over_processes
    rows = [torch.stack(column) for column in zip(*(each.gradients for each in found), strict=True)]
    gradients = {name: everywhere(row) for name, row in zip(inputs, rows, strict=True)}
    losses = everywhere(torch.stack([each.value for each in found]))
    weights, update = aggregate(losses, gradients)
    terms = {name: everywhere(torch.stack([each.terms[name] for each in found])) for name in found[0].terms}
    means = {name: torch.dot(weights.to(value), value) for name, value in terms.items()}
    value = torch.dot(weights.to(losses), losses)
    return precomputed(value, list(inputs.values()), [update[name] for name in inputs]), means, weights


def named_weights(weights: Tensor, data: object) -> dict[str, Tensor]:
    """Weights by the names of the training environments; where these have none, the largest.

    Args:
        weights: (E,).
        data: the data module, or None.
    """
    names = data.environment_names.get("train", ()) if isinstance(data, NamesEnvironments) else ()
    if len(names) == len(weights):
        return dict(zip(names, weights, strict=True))
    return {"largest": weights.max()}
