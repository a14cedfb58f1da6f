"""The optimal adaptation rate of mixed linear regression, measured: its estimate, its causes, MAML's gain over ERM.

[Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate, Fig. 1-3.

[Z22] does not print its bases' sizes nor its data; those here are our choice. Inputs are uniform, because the theorems
suppose features whose Gram matrices have bounded eigenvalues, which powers of normal inputs do not have. Losses and
distances are averaged over the random optima of the tasks in closed form and over draws of the features, and are in
units of the optima's variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gp.functional.ntk import ntk_features
from lightning_gp.theory.mixed_linear_regression import (
    adapted_features,
    expected_adaptation_distance,
    solution_covariance,
)
from lightning_gp.theory.optimal_adaptation import optimal_adaptation_lr

Basis = Callable[[Tensor], Tensor]
"""Inputs x (tasks, K) to features (tasks, K, d)."""


@dataclass(frozen=True)
class Settings:
    """Settings of ``aopt``.

    Attributes:
        examples: K, per task.
        tasks: N, numbers of tasks to learn from.
        draws: of the N tasks, over which the mean is taken.
        new_tasks: tasks that the expectations over new ones are taken over.
        deviations: standard deviations σ of the inputs.
        steps: largest t of the adaptation distance.
        width: hidden units of the network.
        seed: of everything.
    """

    examples: int = 10
    tasks: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    draws: int = 10
    new_tasks: int = 4000
    deviations: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    steps: int = 30
    width: int = 20
    seed: int = 0


SETTINGS = Settings()
QUICK = Settings(tasks=(8, 32, 128, 512), draws=6, new_tasks=1000, deviations=(0.5, 1.0, 2.0, 4.0))


def polynomial(degree: int = 3) -> Basis:
    """φ(x) = (1, x, …, x^degree)."""
    return lambda x: torch.stack([x**power for power in range(degree + 1)], -1)


def fourier(frequencies: int = 3) -> Basis:
    """φ(x) = (1, cos x, sin x, …, cos nx, sin nx)."""
    multiples = torch.arange(1, frequencies + 1, dtype=torch.float64)

    def basis(x: Tensor) -> Tensor:
        angles = x.unsqueeze(-1) * multiples
        return torch.cat([torch.ones_like(angles[..., :1]), angles.cos(), angles.sin()], -1)

    return basis


def gaussian(count: int = 7, width: float = 1.0) -> Basis:
    """φ_j(x) = exp(−(x − c_j)²/2w²), centres c_j evenly in [−3, 3]."""
    centres = torch.linspace(-3, 3, count, dtype=torch.float64)
    return lambda x: torch.exp(-((x.unsqueeze(-1) - centres) ** 2) / (2 * width**2))


def network(width: int, seed: int) -> Basis:
    """The tangent features of a tanh network with one hidden layer and torch's own (uniform) initial weights."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
    parameters: dict[str, Tensor] = dict(module.named_parameters())

    def basis(x: Tensor) -> Tensor:
        return ntk_features(
            lambda p, inputs: torch.func.functional_call(module, p, (inputs,)), parameters, x[..., None]
        )

    return basis


def bases(settings: Settings) -> dict[str, Basis]:
    """The three bases and the network, by name."""
    return {
        "polynomial": polynomial(),
        "Fourier": fourier(),
        "Gaussian": gaussian(),
        "NTK": network(settings.width, settings.seed),
    }


def draw(basis: Basis, tasks: int, settings: Settings, deviation: float, seed: int) -> Tensor:
    """Features of tasks with K inputs each, uniform with mean 0 and standard deviation ``deviation``, (tasks, K, d)."""
    generator = torch.Generator().manual_seed(seed)
    uniform = 2 * torch.rand(tasks, settings.examples, dtype=torch.float64, generator=generator) - 1
    return basis(math.sqrt(3) * deviation * uniform)


def mean_weight(features: Tensor, rate: float) -> Tensor:
    """E CᵀC/K, (d, d): the expected loss after one step from w is the mean of (w − a)ᵀ E[CᵀC/K] (w − a)."""
    C = adapted_features(features, rate).flatten(0, 1)
    return C.mT @ C / len(C)


def mean_covariance(samples: Sequence[Tensor], rate: float) -> Tensor:
    """E w_MAML w_MAMLᵀ over draws of the tasks, (d, d)."""
    return torch.stack([solution_covariance(each, rate) for each in samples]).mean(0)


def best_rate(loss: Callable[[float], float], estimate: float) -> float:
    """The minimum of ``loss`` over rates: a grid over two decades around ``estimate``, then a search at its best."""
    from scipy.optimize import minimize_scalar

    grid = estimate * np.geomspace(0.1, 10, 25)
    best = int(np.argmin([loss(rate) for rate in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6 * low}).x)


def estimation_errors(basis: Basis, settings: Settings) -> dict[str, Any]:
    """|α*_lim − α*(N)| / α*(N) for each N [Z22, Fig. 1].

    α*(N) minimises the expected loss of tasks that are new to w_MAML; ``of_n_tasks`` are the errors (root mean square
    over draws) where the estimate, too, sees only those N tasks.
    """
    new = draw(basis, settings.new_tasks, settings, 1.0, settings.seed)
    limit = float(optimal_adaptation_lr(new))
    rows: dict[str, Any] = {"estimate": limit, "best": [], "error": [], "of_n_tasks": []}
    for tasks in settings.tasks:
        samples = [draw(basis, tasks, settings, 1.0, settings.seed + 1 + i) for i in range(settings.draws)]

        def loss(rate: float, samples: Sequence[Tensor] = samples) -> float:
            weight = mean_weight(new, rate)
            return float(weight.trace() + (weight * mean_covariance(samples, rate)).sum())

        best = best_rate(loss, limit)
        own = [abs(float(optimal_adaptation_lr(each)) - best) / best for each in samples]
        rows["best"].append(best)
        rows["error"].append(abs(limit - best) / best)
        rows["of_n_tasks"].append(math.sqrt(float(np.mean(np.square(own)))))
    return rows


def over_variance(basis: Basis, settings: Settings) -> dict[str, Any]:
    """α*_lim, and α* for infinitely many tasks by minimising the loss, over the inputs' deviation [Z22, Fig. 2]."""
    rows: dict[str, Any] = {"estimate": [], "best": []}
    for deviation in settings.deviations:
        features = draw(basis, settings.new_tasks, settings, deviation, settings.seed)
        estimate = float(optimal_adaptation_lr(features))

        def loss(rate: float, features: Tensor = features) -> float:
            return float(adapted_features(features, rate).square().sum())

        rows["estimate"].append(estimate)
        rows["best"].append(best_rate(loss, estimate))
    logs = np.log(rows["estimate"]), np.log(settings.deviations)
    rows["slope_at_the_end"] = float((logs[0][-1] - logs[0][-2]) / (logs[1][-1] - logs[1][-2]))
    return rows


def against_erm(basis: Basis, settings: Settings, deviation: float, tasks: int = 32) -> dict[str, Any]:
    """Adaptation loss of MAML minus that of ERM over α; distance of ERM minus that of MAML over t [Z22, Fig. 3].

    Both are adapted to new tasks by the same steps: one of rate α, and t of rate 1/λ_max, which contract in each task.
    """
    new = draw(basis, settings.new_tasks, settings, deviation, settings.seed)
    samples = [draw(basis, tasks, settings, deviation, settings.seed + 1 + i) for i in range(settings.draws)]
    limit = float(optimal_adaptation_lr(new))
    gentle = settings.examples / (2 * float(torch.linalg.matrix_norm(new, 2).square().max()))

    def loss_difference(rate: float) -> float:
        difference = mean_covariance(samples, rate) - mean_covariance(samples, 0.0)
        return float((difference * mean_weight(new, rate)).sum())

    def distance(rate: float, steps: int) -> float:
        return float(
            torch.stack([expected_adaptation_distance(each, new[:500], rate, gentle, steps) for each in samples]).mean()
        )

    rates = np.linspace(0, 1.5 * limit, 16).tolist()
    steps = list(range(0, settings.steps + 1, max(1, settings.steps // 10)))
    erm = [distance(0.0, t) for t in steps]
    return {
        "tasks": tasks,
        "deviation": deviation,
        "rates": rates,
        "loss_difference": [loss_difference(rate) for rate in rates],
        "steps": steps,
        "adaptation_rate": gentle,
        "distance_gap": {
            f"{share:g}": [e - distance(share * limit, t) for e, t in zip(erm, steps, strict=True)]
            for share in (0.25, 0.5, 1.0)
        },
    }
