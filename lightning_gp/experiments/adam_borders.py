"""What ends training with Adam outside: the first step, long before any curvature is at its edge.

The first step of Adam is β g/(|g| + ε): every weight moves by β, however small its gradient. Where that throws the loss
beyond the map's bound of divergence the cell ends, after one step. What curvature would allow, with the second moments
of the initial weights, is another border, and the edge that is measured on the way a third: second moments remember the
jump for a thousand steps, and hold the steps far inside the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from lightning_gp.experiments.maps import finite
from lightning_gp.theory.optimizers import update_rule
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import Lines
from lightning_gp.trainability.result import TrainabilityResult
from lightning_gp.tuning.curvature import outer_bound
from lightning_gp.tuning.tunable import Tunable

MOMENTS = 20
"""Batches whose gradients at the initial weights make the second moments, as in ``diagnose``."""
FIRST, EDGE = "first step of Adam beyond the bound", "edge at the initial weights"
PAPERS_RATE = 0.01
"""The inner rate of the papers for sinusoids."""
MARKS = (1, 5, 20, 100, 300, 500)
"""Iterations at which the edge is measured on the way."""


def first_step_border(train: CellTrainer, inner_lr: float, outer_lrs: Sequence[float]) -> float:
    """The smallest β, to 1 %, whose first step takes the loss beyond the bound of divergence; ∞ if none does.

    Args:
        train: with the map's optimizer and bound.
        inner_lr: α.
        outer_lrs: ascending, between which it is looked for.
    """
    low = 0.0
    for rate in outer_lrs:
        if train(inner_lr, rate, 1).diverged:
            return _between(train, inner_lr, low, rate) if low else rate
        low = rate
    return math.inf


def _between(train: CellTrainer, inner_lr: float, low: float, high: float) -> float:
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if train(inner_lr, middle, 1).diverged else (middle, high)
    return math.sqrt(low * high)


def edge_at_start(train: CellTrainer, inner_lr: float) -> float:
    """β_c by the curvature at the initial weights, with the second moments of gradients at these weights."""
    train.first_loss(inner_lr)  # the initial weights, and α
    optimizer = torch.optim.Adam(train.parameters, lr=0.0)
    for batch in train.stream.first(MOMENTS):
        _step(train, optimizer, train.evaluate(batch)[1])
    return _critical(train, optimizer)


def followed(train: CellTrainer, inner_lr: float, outer_lr: float, iterations: int) -> dict[str, Any]:
    """One training that no bound of divergence ends: its losses, and the distance to the edge on the way."""
    train.first_loss(inner_lr)
    optimizer = torch.optim.Adam(train.parameters, lr=outer_lr)
    losses: list[float] = []
    edges: dict[int, float] = {}
    for iteration, batch in enumerate(train.stream.first(iterations + 1)):
        loss, gradients = train.evaluate(batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if iteration in MARKS:
            edges[iteration] = outer_lr / _critical(train, optimizer)
        _step(train, optimizer, gradients)
    train.first_loss(inner_lr)
    top = max(range(len(losses)), key=losses.__getitem__)
    return {
        "inner_lr": inner_lr,
        "outer_lr": outer_lr,
        "first_loss": losses[0],
        "largest_loss": finite(losses[top]),
        "at_iteration": top,
        "last_loss": finite(losses[-1]),
        "edge": edges,
    }


def _step(train: CellTrainer, optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor]) -> None:
    for parameter, gradient in zip(train.parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _critical(train: CellTrainer, optimizer: torch.optim.Optimizer) -> float:
    weights = [parameter.detach() for parameter in train.parameters]
    batch = next(train.stream.first(1))[0]
    return outer_bound(cast(Tunable, train.objective), weights, batch, update_rule(optimizer)) or math.inf


def explained(trainability: TrainabilityMap, result: TrainabilityResult) -> tuple[Lines, dict[str, Any]]:
    """Both predictions for each α of a map with Adam, and where the map's border is within a step of its grid.

    Of several seeds, for the first.

    Returns:
        The lines to draw, and numbers for JSON.
    """
    result = result.of_seed(result.header["seeds"][0])
    train = trainability.trainer(result.header["seeds"][0])
    alphas, betas = result.inner_lrs.tolist(), result.outer_lrs.tolist()
    lines = {
        FIRST: [first_step_border(train, alpha, betas) for alpha in alphas],
        EDGE: [edge_at_start(train, alpha) for alpha in alphas],
    }
    borders = result.critical_outer_lrs("worse").tolist()
    near = {
        name: [alpha for alpha, *pair in zip(alphas, line, borders, strict=True) if within_a_step(betas, *pair)]
        for name, line in lines.items()
    }
    iterations = result.header["settings"]["iterations"]
    some = betas[:: max(1, len(betas) // 8)]
    numbers = {
        "bound_of_divergence": train.divergence,
        "lines": {
            name: {f"{alpha:g}": finite(beta) for alpha, beta in zip(alphas, line, strict=True)}
            for name, line in lines.items()
        },
        "border_within_a_step_at": near,
        "first_cell_beyond_the_border": {f"{alpha:g}": _end(result, alpha) for alpha in alphas},
        "followed": [followed(train, alpha, beta, iterations) for alpha in (0.0, PAPERS_RATE) for beta in some],
    }
    return tuple((name, tuple(line)) for name, line in lines.items()), numbers


def _end(result: TrainabilityResult, inner_lr: float) -> str:
    """How the first cell beyond the border ended."""
    for cell, outcome in sorted(result.cells.items(), key=lambda each: each[0].outer_lr):
        if cell.inner_lr == inner_lr and outcome.worse:
            how = f"beyond the bound at iteration {outcome.iterations}" if outcome.diverged else "with a higher loss"
            return f"β = {cell.outer_lr:.3g} ended {how}"
    return "none"


def within_a_step(outer_lrs: Sequence[float], predicted: float, border: float) -> bool:
    """Whether the first failing rates of the grid that two borders stand for are the same or neighbours."""
    first, second = (int(np.searchsorted(np.asarray(outer_lrs), beta)) for beta in (predicted, border))
    return abs(first - second) <= 1
