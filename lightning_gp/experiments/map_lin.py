"""Linear regression, on which the learning-rate theory is exact.

The bound of the papers, 2/(λ − αλ²), is that of FOMAML (and of the simplified MAML). MAML with its second derivatives
has 2/(λ(1 − αλ)²), larger by the factor 1/(1 − αλ): at α = α_c/2 the papers' bound is half of what MAML really allows,
and above α_c, where they allow nothing, MAML still trains.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lightning_gp.datamodules import LinearRegressionDataModule
from lightning_gp.experiments.maps import RUN, Finding, Panel, Run, complete, spread, write
from lightning_gp.modules.maml import MAML
from lightning_gp.theory.learning_rates import critical_inner_lr, critical_outer_lr
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import Curve
from lightning_gp.trainability.result import TrainabilityResult

Algorithm = Literal["fomaml", "maml"]
WIDTH = 2e-3  # relative width at which the bisection stops: a tenth of the 2 % that are asked for
PAPER = {
    "fomaml": "training diverges exactly above β_c = min 2/(λ - αλ²), and above α_c = 1/λ_max at any β",
    "maml": "(exact theory, not in the paper) training diverges exactly above β_c = min 2/(λ(1 - αλ)²)",
}
CURVES: dict[Algorithm, tuple[Curve, ...]] = {"fomaml": ("simplified",), "maml": ("simplified", "exact")}


def _line(seed: int, first_order: bool, compile: bool) -> MAML:
    # In float64, so that rounding does not decide what diverges.
    network = nn.Linear(1, 1).double()
    return MAML(network, first_order=first_order, criterion=nn.functional.mse_loss, compile=compile)


def _line_data(seed: int) -> LinearRegressionDataModule:
    return LinearRegressionDataModule(fixed=True, environments_per_batch=1, dtype="float64", seed=seed)


def linear_map(algorithm: Algorithm, run: Run = RUN, compile: bool = False) -> TrainabilityMap:
    """The map of the paper, of a task for each seed; ``quick`` takes a coarser grid."""
    return TrainabilityMap(
        partial(_line, first_order=algorithm == "fomaml", compile=compile),
        _line_data,
        *run.grid(("1e-5:9e-2", 12), ("5e-3:9e0", 16)),
        seeds=run.chosen(),
    )


def eigenvalues(trainer: CellTrainer, iterations: int) -> list[float]:
    """Eigenvalues of the Hessian of the task's loss where training with α = 5e-2, β = 7e-1 ends; largest first.

    Where it diverges, on a task of larger curvature, those at the initial weights: of this loss they are the same.
    """
    weights = trainer.initial if trainer(5e-2, 7e-1, iterations).diverged else trainer.trained
    x, y = (values[0] for values in next(trainer.stream.first(1))[0].split("query"))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return (flat[0] * x + flat[1] - y).square().mean()

    point = torch.cat([parameter.flatten() for parameter in weights])
    hessian: Any = torch.autograd.functional.hessian(loss, point)
    return [float(value) for value in torch.linalg.eigvalsh(hessian).flip(0)]


def grows(trainer: CellTrainer, inner_lr: float, outer_lr: float, iterations: int) -> bool:
    """Whether the loss diverges, or is larger at the end than halfway.

    Close to the border the last mode neither grows nor shrinks much; the others have died out by half the iterations.
    What has reached the rounding errors of the first loss does not grow.
    """
    losses: list[float] = []
    outcome = trainer(inner_lr, outer_lr, iterations, on_loss=lambda _, loss: losses.append(loss))
    if outcome.loss is None or outcome.first_loss is None:
        return True
    return outcome.loss > max(losses[iterations // 2], 1e-24 * outcome.first_loss)


def border(trainer: CellTrainer, result: TrainabilityResult, inner_lr: float) -> float:
    """β at which training begins to diverge, by bisection; 0 if at all rates of the map, ∞ at none.

    First between rates of the map, then between the two neighbours that are left: growth has one border in β, because
    each mode is multiplied by 1 − βc, which is inside ± 1 up to β = 2/c and never again.

    Args:
        trainer: trains the map's cells.
        result: the map.
        inner_lr: an α of it.
    """
    iterations = result.header["settings"]["iterations"]
    betas = [float(beta) for beta in result.outer_lrs]
    below, failing = -1, len(betas)
    while failing - below > 1:
        middle = (below + failing) // 2
        below, failing = (below, middle) if grows(trainer, inner_lr, betas[middle], iterations) else (middle, failing)
    if failing in (0, len(betas)):
        return math.inf if failing else 0.0
    low, high = betas[below], betas[failing]
    while high / low > 1 + WIDTH:
        rate = math.sqrt(low * high)
        low, high = (low, rate) if grows(trainer, inner_lr, rate, iterations) else (rate, high)
    return math.sqrt(low * high)


def compare(algorithm: Algorithm, trainer: CellTrainer, result: TrainabilityResult) -> dict[str, Any]:
    """The borders found against the theory, at every α of one seed; beyond the grid, both must be there."""
    values = eigenvalues(trainer, result.header["settings"]["iterations"])
    rows: list[dict[str, Any]] = []
    top, bottom = float(result.outer_lrs[-1]), float(result.outer_lrs[0])
    for alpha in map(float, result.inner_lrs):
        theory = float(critical_outer_lr(values, alpha, algorithm))
        found = border(trainer, result, alpha)
        outside = (theory < bottom and found == 0) or (theory > top and math.isinf(found))
        deviation = 0.0 if outside else abs(found / theory - 1) if theory > 0 else math.inf
        rows.append({"inner_lr": alpha, "found": found, "theory": theory, "deviation": deviation})
    worst = max(row["deviation"] for row in rows)
    print(f"{algorithm}, seed {trainer.seed}: largest deviation {worst:.2%} at {len(rows)} rates α", flush=True)
    papers = [row["found"] / float(critical_outer_lr(values, row["inner_lr"], "fomaml") or math.nan) for row in rows]
    return {
        "eigenvalues": values,
        "critical_inner_lr": float(critical_inner_lr(values)),
        "largest_deviation": worst,
        "largest_ratio_to_the_papers_bound": max((ratio for ratio in papers if math.isfinite(ratio)), default=None),
        "borders": [{name: _finite(value) for name, value in row.items()} for row in rows],
    }


def judged(algorithm: Algorithm, found: dict[int, dict[str, Any]], count: int) -> Finding:
    """Whether the border is the bound, on the task of every seed.

    Args:
        algorithm: whose bound.
        found: ``compare``, by seed.
        count: of rates α.
    """
    worst = {seed: each["largest_deviation"] for seed, each in found.items()}
    text = f"largest relative deviation of the border from the bound over {count} rates α: {max(worst.values()):.2%}"
    if len(worst) > 1:
        text += f" on the worst of {len(worst)} tasks, {min(worst.values()):.2%} on the best"
    return Finding(PAPER[algorithm], text, max(worst.values()) <= 0.02)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "beyond the grid"


def lin(run: Run = RUN, compile: bool = False) -> None:
    """Linear regression: maps of FOMAML and MAML on the exact bounds of the theory [T19, Fig. 3].

    One task y = a x + b, scale and bias in [0, 5], x in [-5, 5], the same data inside and outside, one inner step,
    full-batch gradient descent, 500 iterations. λ are the eigenvalues of the loss's Hessian where training with
    α = 5e-2 and β = 7e-1 ends. Beyond the paper's grid, the border of divergence is found by bisection in β at each α.
    A seed is a task, with a bound of its own, against which its border is held; the pictures are the first seed's.

    Args:
        run: see Run.
        compile: compile the step: several times as fast, a slow start.
    """
    seeds = run.chosen()
    maps = {algorithm: linear_map(algorithm, run, compile) for algorithm in CURVES}
    results = {name: run.computed(trainability, "lin", f"lin-{name}") for name, trainability in maps.items()}
    if not complete(list(results.values())):
        return
    findings: list[Finding] = []
    numbers: dict[str, Any] = {}
    panels: dict[Panel, TrainabilityResult] = {}
    for name, result in results.items():
        found = {seed: compare(name, maps[name].trainer(seed), result.of_seed(seed)) for seed in seeds}
        findings.append(judged(name, found, len(result.inner_lrs)))
        first = found[seeds[0]]
        deviations = spread(each["largest_deviation"] for each in found.values())
        others = {str(seed): found[seed] for seed in seeds[1:]}
        numbers[name] = {"largest_deviations": deviations, **first, "other_seeds": others}
        panel = Panel(f"Linear regression, {name.upper()}", tuple(first["eigenvalues"]), CURVES[name])
        panels[panel] = result.of_seed(seeds[0])
    write("lin", run, panels, findings, numbers, compile=compile)
