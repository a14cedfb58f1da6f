"""The optimal adaptation rate: how good its estimate is, what it depends on, and what MAML gains over ERM.

[Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate, Fig. 1-3.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_gp.experiments.aopt_measurements import (
    QUICK,
    SETTINGS,
    Settings,
    against_erm,
    bases,
    estimation_errors,
    over_variance,
    polynomial,
)
from lightning_gp.plots import canvas, require_matplotlib, save_figure
from lightning_gp.runs.folders import check_settings, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def aopt(quick: bool = False, settings: Settings = SETTINGS, output: Path = Path("runs/aopt")) -> dict[str, Any]:
    """The optimal adaptation rate of mixed linear regression and its estimate [Z22, Fig. 1-3].

    Args:
        quick: fewer tasks and draws, some seconds in place of minutes.
        settings: of all measurements.
        output: folder for aopt.json and aopt.png.

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if the folder holds a result of other settings.
    """
    settings = replace(QUICK, seed=settings.seed) if quick else settings
    check_settings(output / "aopt.json", asdict(settings))
    require_matplotlib()
    start = time.perf_counter()
    known = bases(settings)
    summary: dict[str, Any] = {
        "command": f"lightning-gp reproduce aopt{' --quick' if quick else ''} --seed {settings.seed}",
        "paper": {
            "estimation": "Z22 Theorem 1, Fig. 1: the estimate tends to the optimum as the number of tasks N grows",
            "variance": "Z22 Corollary, Fig. 2: the optimum falls as the variance of φ grows; as that of x does, α* "
            "falls as 1/σ² for φ = (1, x), as σ^-6 for cubics, and rises for Fourier and Gaussian bases",
            "against_erm": "Z22 Theorem 2, Fig. 3: MAML's solution is nearer to the optima than ERM's, by a gap that "
            "decays exponentially in t, for α below some δ (here the gap has turned negative at α = α*)",
        },
        "settings": asdict(settings),
        "estimation": {},
        "variance": {},
    }
    for name, basis in known.items():
        summary["estimation"][name] = estimation_errors(basis, settings)
        errors = summary["estimation"][name]["error"]
        print(f"{name}: error {errors[0]:.2g} at N = {settings.tasks[0]}, {errors[-1]:.2g} at {settings.tasks[-1]}")
    for name, basis in {"linear (1, x)": polynomial(1), **known}.items():
        summary["variance"][name] = over_variance(basis, settings)
        print(f"{name}: d log α* / d log σ = {summary['variance'][name]['slope_at_the_end']:.2f} at the largest σ")
    # Directions that hardly any task determines would dominate a distance: bases that are orthogonal on their inputs.
    summary["against_erm"] = {
        "linear (1, x)": against_erm(polynomial(1), settings, 1.0),
        "Fourier": against_erm(known["Fourier"], settings, math.pi / math.sqrt(3)),
    }
    summary |= {"seconds": round(time.perf_counter() - start), "torch": torch.__version__}
    _write(output, summary, settings)
    return summary


def _write(folder: Path, summary: dict[str, Any], settings: Settings) -> None:
    write_json(folder / "aopt.json", summary)
    figure, (errors, variance, losses, distances) = canvas(2, 2, 5.5, 4.25)
    _draw_estimates(errors, variance, summary, settings)
    _draw_against_erm(losses, distances, summary["against_erm"])
    (picture,) = save_figure(figure, folder / "aopt")
    print(f"Picture: {picture}   Numbers: {folder / 'aopt.json'}", flush=True)


def _draw_estimates(errors: Axes, variance: Axes, summary: dict[str, Any], settings: Settings) -> None:
    from matplotlib.ticker import NullFormatter

    for index, (name, rows) in enumerate(summary["estimation"].items()):
        errors.loglog(settings.tasks, rows["error"], color=f"C{index}", marker="o", label=name)
        errors.loglog(settings.tasks, rows["of_n_tasks"], color=f"C{index}", linestyle=":")
    errors.set(
        xlabel="tasks N", ylabel="|estimate − α*(N)| / α*(N)", title="Error of the estimate (dotted: from N tasks)"
    )
    for index, (name, rows) in enumerate(summary["variance"].items()):
        colour = f"C{(index - 1) % 10}"
        variance.loglog(settings.deviations, rows["estimate"], color=colour, label=name)
        variance.loglog(settings.deviations, rows["best"], color=colour, marker="o", linestyle="")
    variance.set(
        xlabel="standard deviation σ of x",
        ylabel="α*",
        title="Optimal rate (line: estimate, dots: minimum of the loss)",
    )
    variance.xaxis.set_minor_formatter(NullFormatter())
    for panel in (errors, variance):
        panel.legend()


def _draw_against_erm(losses: Axes, distances: Axes, summary: dict[str, Any]) -> None:
    for index, (name, rows) in enumerate(summary.items()):
        losses.plot(np.array(rows["rates"]) / (rows["rates"][-1] / 1.5), rows["loss_difference"], label=name)
        for share, style in (("0.25", ":"), ("0.5", "-"), ("1", "--")):
            label = f"{name}, α = {'' if share == '1' else share + ' '}α*"
            distances.plot(rows["steps"], rows["distance_gap"][share], color=f"C{index}", linestyle=style, label=label)
    for panel in (losses, distances):
        panel.axhline(0.0, color="black", linewidth=1)
    distances.set_yscale("symlog", linthresh=1e-6)  # the gap is negative at α*
    losses.set(xlabel="α / α*", ylabel="(L of MAML − L of ERM) / σ_a²", title="After one step of rate α on new tasks")
    distances.set(
        xlabel="inner steps t",
        ylabel="(F_t of ERM − F_t of MAML) / σ_a²",
        title="How much nearer MAML is to the optima",
    )
    losses.legend()
    distances.legend(fontsize=8)
