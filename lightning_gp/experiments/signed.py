"""Both signs of one rate: MAML, joint training and inner ascent on one axis, beside the penalties.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective: section V.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn
from torch.nn import functional as F

from lightning_gp.datamodules import LinearRegressionDataModule, SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.experiments.maps import RUN, Run, complete, spread
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.plots import canvas, save_figure
from lightning_gp.runs.folders import write_json
from lightning_gp.theory.learning_rates import Kind, critical_outer_lr
from lightning_gp.trainability.grid import parse_rates
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import halo, limits
from lightning_gp.trainability.result import TrainabilityResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SQUARED = {"criterion": F.mse_loss}
GAP = 0.6
"""Between α = 0 and the smallest α on either side, in decades."""


class Half(NamedTuple):
    """One algorithm: its objective, the side of the axis, and its curve in theory with what α is multiplied by."""

    module: Callable[..., Any]
    side: int
    kind: Kind | None = None
    factor: float = 1.0


HALVES: Mapping[str, Mapping[str, Half]] = {
    "ascent | ERM | MAML": {
        "maml": Half(MAML, 1, "maml"),
        "ascent": Half(partial(MAML, direction="ascent"), -1, "ascent"),
    },
    "positive | ERM | negative gradient penalty": {
        "negative": Half(partial(GradientPenalty, sign=-1), 1, "fomaml", 2.0),
        "positive": Half(partial(GradientPenalty, sign=1), -1, "positive_penalty", 2.0),
    },
    "IRMv1 | ERM": {"irmv1": Half(IRMv1, -1)},
}


class Problem(NamedTuple):
    """A network, data of a seed, and the ranges of α and β with how many rates each has."""

    title: str
    network: Callable[[], nn.Module]
    data: Callable[[int], Any]
    alphas: str
    betas: str
    iterations: int


def problems(quick: bool) -> dict[str, Problem]:
    """Linear regression, where theory is exact, and sinusoids."""
    counts, steps = ((4, 5), 60) if quick else ((9, 14), 200)

    def line(seed: int) -> LinearRegressionDataModule:
        return LinearRegressionDataModule(fixed=True, environments_per_batch=1, dtype="float64", seed=seed)

    def sinusoids(seed: int) -> SinusoidDataModule:
        return SinusoidDataModule(environments_per_batch=25, seed=seed)

    alphas, betas = f"1e-3:9e-2:{counts[0]}", f"5e-3:9e0:{counts[1]}"
    return {
        "linear": Problem("Linear regression", lambda: nn.Linear(1, 1).double(), line, alphas, betas, steps),
        "sinusoid": Problem("Sinusoids", SinusoidMLP, sinusoids, f"1e-3:3e-1:{counts[0]}", betas, steps),
    }


def signed(run: Run = RUN) -> None:
    """Maps over a signed α: inner ascent, joint training and MAML, both gradient penalties, IRMv1 [T21, section V].

    Rows are linear regression (one task) and sinusoids (25 environments). To the right α draws towards large gradients
    (MAML, the negative penalty), to the left towards small ones (inner ascent, the positive penalty, IRMv1); in the
    middle, α = 0, is joint training. Curves of theory are β_c of the two largest eigenvalues of the mean query loss's
    Hessian after joint training, of the first seed. White lines are the median border over seeds; a cell is white where
    a seed diverged. Some minutes a seed.

    Args:
        run: see Run.
    """
    results: dict[tuple[str, str], TrainabilityResult] = {}
    eigenvalues: dict[str, list[float]] = {}
    for name, problem in problems(run.quick).items():
        alphas, betas = parse_rates(problem.alphas), parse_rates(problem.betas)
        for algorithm, half in ((key, half) for column in HALVES.values() for key, half in column.items()):
            build: Any = partial(_module, half, problem)
            trainability = TrainabilityMap(
                build, problem.data, alphas, betas, problem.iterations, run.chosen(), device=run.device
            )
            results[name, algorithm] = run.computed(trainability, "signed", f"signed-{name}-{algorithm}")
            if algorithm == "maml":
                eigenvalues[name] = joint_eigenvalues(trainability, problem.iterations)
    if not complete(list(results.values())):
        return
    figure, panels = canvas(len(HALVES), 2, width=5.6, height=4.2)
    for number, (name, problem) in enumerate(problems(run.quick).items()):
        for column, (title, halves) in enumerate(HALVES.items()):
            own = {key: (half, results[name, key]) for key, half in halves.items()}
            _draw(panels[number * len(HALVES) + column], own, eigenvalues[name], f"{problem.title}: {title}")
    path = run.path("signed")
    files = save_figure(figure, path, ("png", "pdf"))
    numbers = {f"{name}, {algorithm}": _borders(result) for (name, algorithm), result in results.items()}
    command = " ".join(["lightning-gp reproduce signed", *run.words])
    write_json(path.with_suffix(".json"), {"command": command, "eigenvalues": eigenvalues, "borders": numbers})
    print(f"Table: {path}.json   Pictures: {', '.join(map(str, files))}", flush=True)


def _module(half: Half, problem: Problem, seed: int) -> EnvironmentModule:
    module: EnvironmentModule = half.module(problem.network(), **SQUARED)
    return module


def joint_eigenvalues(trainability: TrainabilityMap, iterations: int) -> list[float]:
    """The two largest of the mean query loss's Hessian where joint training with the first seed ends."""
    trainer = trainability.trainer(trainability.seeds[0])
    trainer(0.0, 0.02, iterations)
    module: Any = trainer.objective
    batch: Environments = next(trainer.stream.first(1))[0]
    parameters = {name: value.detach() for name, value in module.network_parameters().items()}
    found = hessian_eigenvalues(lambda theta: module.environment_losses(theta, batch).mean(), parameters, k=2)
    return [float(value) for value in found.values]


def _borders(result: TrainabilityResult) -> dict[str, Any]:
    return {f"{alpha:g}": spread(result.seed_borders(alpha)) for alpha in (0.0, *result.inner_lrs)}


def _draw(
    axes: Axes, halves: Mapping[str, tuple[Half, TrainabilityResult]], eigenvalues: list[float], title: str
) -> None:
    from matplotlib.colors import LogNorm

    first = next(iter(halves.values()))[1]
    smallest, betas = first.inner_lrs[0], first.outer_lrs
    shown = {key: np.where(result.diverged > 0, np.nan, result.losses) for key, (_, result) in halves.items()}
    assert first.zero is not None
    middle = np.where(first.zero.diverged > 0, np.nan, first.zero.losses)
    every = np.concatenate([middle, *(values.ravel() for values in shown.values())])
    options: dict[str, Any] = {
        "norm": LogNorm(*limits(every[every > 0]), clip=True),
        "cmap": "viridis",
        "shading": "nearest",
    }

    def place(alphas: Any, side: int) -> Any:
        return side * (np.log10(alphas / smallest) + GAP)

    mesh = axes.pcolormesh([-0.2, 0.2], betas, np.stack([middle, middle], 1), **options)
    ticks: dict[float, str] = {0.0: "0"}
    for key, (half, result) in halves.items():
        x = place(result.inner_lrs, half.side)
        axes.pcolormesh(x, betas, np.where(shown[key] > 0, shown[key], np.nan).T, **options)
        median = [float(np.median(result.seed_borders(alpha))) for alpha in result.inner_lrs]
        label = "β_c found, median" if half.side == -1 else None
        axes.plot(x, np.clip(median, betas[0], betas[-1]), color="white", path_effects=[halo()], label=label)
        marks = [alpha for alpha in (1e-3, 1e-2, 1e-1) if smallest <= alpha <= result.inner_lrs[-1]]
        ticks.update({float(place(alpha, half.side)): f"{half.side * alpha:g}" for alpha in marks})
        fine = np.geomspace(smallest, result.inner_lrs[-1], 400)
        for value, colour in zip(eigenvalues, ("black", "tab:red"), strict=False):
            if half.kind is None or value <= 0:
                continue
            bound = np.asarray(critical_outer_lr(np.full((400, 1), value), half.factor * fine, half.kind))
            bound = np.where((bound > betas[0] / 2) & (bound < 2 * betas[-1]), bound, np.nan)
            label = f"β_c, λ = {value:.3g}" if half.side == 1 else None
            axes.plot(place(fine, half.side), bound, color=colour, label=label)
    axes.figure.colorbar(mesh, ax=axes, label="loss after training")
    axes.set(yscale="log", ylim=(betas[0], betas[-1]), xlabel="signed α", ylabel="outer rate β", title=title)
    axes.set_xticks(list(ticks), list(ticks.values()))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="lower left")
