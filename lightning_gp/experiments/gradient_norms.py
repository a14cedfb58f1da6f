"""The gradient norm of MAML against that of its own α = 0, measured by callbacks in a Trainer [T21, Figs. 2a and 3a].

The gradient norm is mean_τ ‖∇L_τ(θ)‖ at the unadapted parameters.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gp.callbacks.cosine_similarity import CosineSimilarity
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.checks import whole
from lightning_gp.experiments.penalty_signs import NORM, Curves, maml_curve, signs
from lightning_gp.plots import canvas, require_matplotlib
from lightning_gp.runs.folders import kept
from lightning_gp.runs.training import Row, check_every, write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSINE = "gradients/cosine"
CURVES = Curves()


def omniglot(
    root: str = "data",
    settings: Curves = CURVES,
    seed: int = 0,
    inner_lr: float = 0.4,
    output: Path = Path("runs/gradient_norms"),
) -> dict[str, Any]:
    """MAML against its own inner rate 0 on Omniglot: the same weights to start from, the same episodes.

    1 shot, 15 queries; some 20 minutes on one core. A finished run is kept.

    Args:
        root: folder of the Omniglot data.
        settings: of both runs.
        seed: of weights and episodes.
        inner_lr: α of the MAML run.
        output: folder for omniglot.png, .csv and .json.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a number is out of range, or the folder holds runs of other settings.
        FileNotFoundError: if there are no data.
    """
    check_every(settings.iterations, settings.every)
    whole(1, **asdict(settings))
    require_matplotlib()
    known = {**asdict(settings), "seed": seed, "inner_lr": inner_lr}
    curves: dict[str, list[Row]] = {}
    seconds = 0.0
    for name, alpha in (("maml", inner_lr), ("alpha_0", 0.0)):
        path = output / "curves" / f"omniglot-{name}-seed{seed}.json"
        result = kept(path, known, partial(maml_curve, alpha, seed, settings, root, (GradientNorm, CosineSimilarity)))
        curves[name] = result["rows"]
        seconds += result["seconds"]
    cosines = [row[COSINE] for row in curves["maml"]]
    norms = {name: statistics.fmean(row[NORM] for row in rows[len(rows) // 2 :]) for name, rows in curves.items()}
    pairs = list(zip(curves["maml"], curves["alpha_0"], strict=True))
    summary = {
        "command": f"lightning-gp reproduce gradient-norms omniglot --root <omniglot> "
        f"--iterations {settings.iterations} --every {settings.every} --seed {seed}",
        "settings": known,
        "measurements": len(cosines),
        "share_of_positive_cosines": statistics.fmean(cosine > 0 for cosine in cosines),
        "smallest_cosine": min(cosines),
        "norm_mean_later_half": norms,
        "norm_ratio_later_half": norms["maml"] / norms["alpha_0"],
        "share_of_measurements_with_larger_norm": statistics.fmean(one[NORM] > other[NORM] for one, other in pairs),
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    rows = [{"run": name, **row} for name, each in curves.items() for row in each]
    write_results(output, "omniglot", rows, summary, _draw(curves, inner_lr))
    return summary


def _draw(curves: Mapping[str, list[Row]], inner_lr: float) -> Figure:
    styles = {"maml": (f"MAML, α = {inner_lr:g}", "tab:orange"), "alpha_0": ("α = 0", "tab:blue")}
    figure, panels = canvas(2, width=5, height=4)
    left, right = panels
    for name, (label, colour) in styles.items():
        steps = [row["iteration"] for row in curves[name]]
        right.plot(steps, [row[NORM] for row in curves[name]], color=colour, label=label)
        if name == "maml":
            left.plot(steps, [row[COSINE] for row in curves[name]], color=colour, label=label)
    left.axhline(0.0, color="black", linestyle="--", linewidth=1, label="zero")
    left.set(xlabel="iteration", ylabel="cosine similarity", title="query against support gradient")
    left.set_ylim(bottom=min(-0.1, left.get_ylim()[0]))
    right.set(xlabel="iteration", ylabel="gradient norm at the unadapted parameters", title="norm of query gradient")
    right.set_ylim(bottom=0.0)
    for panel in panels:
        panel.legend()
    return figure


FIGURES = {"omniglot": omniglot, "signs": signs}
"""The figures by name."""
