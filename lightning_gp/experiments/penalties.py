"""Maps of both gradient penalties, on lines and on sinusoids.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective: Eqs. 1, 2, 26 and 31, Fig. 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn
from torch.nn import functional as F

from lightning_gp.datamodules import LinearRegressionDataModule, SinusoidDataModule
from lightning_gp.experiments.map_findings import fallen, larger_near_the_end
from lightning_gp.experiments.maps import RUN, Finding, Panel, Run, borders, complete, finite, spread, write
from lightning_gp.experiments.signed import joint_eigenvalues
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.theory.learning_rates import Kind, critical_outer_lr
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.result import TrainabilityResult

Problem = Literal["lines", "sinusoids"]


class Side(NamedTuple):
    """A sign of the penalty: in the loss, in the theory, and what the paper says of it."""

    sign: Literal[-1, 1]
    kind: Kind
    paper: str


SIDES = {
    "negative": Side(-1, "fomaml", "with a negative penalty a larger β can be used near α_c than at α = 0"),
    "positive": Side(1, "positive_penalty", "with a positive penalty the largest β falls with α"),
}
HALF = 2.0
"""The theory has α/2 ‖∇L‖², the module α ‖∇L‖²."""
EXACT = "training diverges above β_c of the loss's own Hessian, min 2/(λ ∓ 2αλ²)"
INNER: dict[tuple[Problem, str], tuple[str, int]] = {
    ("lines", "negative"): ("1e-5:9e-2", 9),
    ("lines", "positive"): ("1e-4:9e-1", 9),
    ("sinusoids", "negative"): ("1e-4:9e-1", 9),
    ("sinusoids", "positive"): ("1e-4:9e-1", 9),
}
OUTER = ("1e-3:9e0", 10)
TOLERANCE = 0.05
"""Of the border against the bound: beside the width of its bracket, a cell diverges only where 10⁴ times the loss is
reached in the iterations that it has, which takes a rate slightly above the bound."""


def _module(seed: int, problem: Problem, sign: Literal[-1, 1]) -> GradientPenalty:
    network = nn.Linear(1, 1).double() if problem == "lines" else SinusoidMLP()
    return GradientPenalty(network, sign=sign, criterion=F.mse_loss)


def _data(seed: int, problem: Problem) -> Any:
    if problem == "lines":
        return LinearRegressionDataModule(fixed=True, environments_per_batch=1, dtype="float64", seed=seed)
    return SinusoidDataModule(environments_per_batch=25, seed=seed)


def penalty_map(run: Run, problem: Problem, name: str) -> TrainabilityMap:
    """One of the four maps; ``quick`` has a coarse grid and 200 iterations."""
    return TrainabilityMap(
        partial(_module, problem=problem, sign=SIDES[name].sign),
        partial(_data, problem=problem),
        *run.grid(INNER[problem, name], OUTER),
        iterations=200 if run.quick else 500,
        seeds=run.chosen(),
        device=run.device,
    )


def penalties(run: Run = RUN) -> None:
    """Maps of the gradient penalties of both signs, on lines and sinusoids, with the theory's curves [T21, Fig. 1].

    L ∓ α‖∇L‖² of one line (10 points, full batches) and of 25 sinusoids (MLP 40-40), gradient descent, 500 iterations.
    On a line the loss is quadratic, so that the bounds 2/(λ − 2αλ²) and 2/(λ + 2αλ²) are exact, and each seed's border
    is held against those of its own task. On sinusoids the curves are those of the Hessian after joint training with
    the first seed, a guide. Checked over seeds: whether the negative penalty allows a larger β near its largest usable
    α than at α = 0, and whether the positive one allows a smaller one. Some minutes a seed; --quick is a coarse grid.

    Args:
        run: see Run.
    """
    panels: dict[Panel, TrainabilityResult] = {}
    findings: list[Finding] = []
    numbers: dict[str, Any] = {}
    maps = {each: penalty_map(run, *each) for each in INNER}
    results = {
        (problem, name): run.computed(trainability, "penalties", f"penalties-{problem}-{name}")
        for (problem, name), trainability in maps.items()
    }
    if not complete(list(results.values())):
        return
    for (problem, name), result in results.items():
        trainability, side = maps[problem, name], SIDES[name]
        values = joint_eigenvalues(trainability, trainability.iterations)
        if name == "negative":
            finding, test = larger_near_the_end(result, f"{problem}: {side.paper}")
        else:
            finding, test = fallen(result, f"{problem}: {side.paper}", "diverged")
        findings.append(finding)
        numbers[f"{problem}, {name}"] = {"eigenvalues": values, "test": test, "borders": borders(result)}
        if problem == "lines":
            finding, compared = exact(trainability, result, side)
            findings.append(finding)
            numbers[f"{problem}, {name}"]["bound"] = compared
        panels[Panel(f"{problem.capitalize()}, {name} penalty", tuple(values))] = result
    write("penalties", run, panels, findings, numbers, rows=2)


def exact(trainability: TrainabilityMap, result: TrainabilityResult, side: Side) -> tuple[Finding, dict[str, Any]]:
    """The borders of lines over the bound of each seed's own task, where both are on the grid."""
    bottom, top = float(result.outer_lrs[0]), float(result.outer_lrs[-1])
    ratios: dict[str, list[float]] = {}
    beyond = 0
    for index, seed in enumerate(result.header["seeds"]):
        values = _curvatures(trainability, seed)
        for alpha in map(float, result.inner_lrs):
            theory = float(critical_outer_lr(values, HALF * alpha, side.kind))
            found = float(result.seed_borders(alpha)[index])
            if bottom < theory < top and 0 < found < math.inf:
                ratios.setdefault(f"{alpha:g}", []).append(found / theory)
            else:  # a border that only one of both puts beyond the grid is counted, not compared
                beyond += not ((theory <= bottom and found == 0) or (theory >= top and found == math.inf))
    every = np.array([ratio for each in ratios.values() for ratio in each])
    step = float((result.outer_lrs[1:] / result.outer_lrs[:-1]).max())
    allowed = TOLERANCE if result.refined else step - 1
    worst = float(np.exp(np.abs(np.log(every)).max()) - 1) if every.size else math.nan
    found_text = (
        f"borders are {float(np.median(every)):.3f} times the bound ({every.min():.3f} to {every.max():.3f}) at "
        f"{every.size} pairs of α and task on the grid; at {beyond} others only one of both is on it"
        if every.size
        else "no border is on the grid together with its bound"
    )
    numbers = {
        "border_over_bound": {alpha: spread(each) for alpha, each in ratios.items()},
        "largest_deviation": finite(worst),
        "only_one_on_the_grid": beyond,
    }
    return Finding(f"lines: {EXACT}", found_text, bool(every.size and worst <= allowed)), numbers


def _curvatures(trainability: TrainabilityMap, seed: int) -> np.ndarray[Any, Any]:
    """Eigenvalues of the Hessian of (a x + b − y)², the same at all weights: 2/n Σ (x, 1)(x, 1)ᵀ."""
    x = next(trainability.trainer(seed).stream.first(1))[0].split("query")[0].flatten().double().numpy()
    features = np.stack([x, np.ones_like(x)])
    return np.asarray(np.linalg.eigvalsh(2 * features @ features.T / len(x)))[::-1].copy()
