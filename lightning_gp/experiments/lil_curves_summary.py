"""Table, picture and summary of the runs that ``lil_curves`` has kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gp.plots import canvas
from lightning_gp.runs.folders import read_json, same
from lightning_gp.runs.summaries import over_seeds
from lightning_gp.runs.training import Row, write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"maml": "MAML", "lil": "MAML + LIL", "anil": "ANIL", "boil": "BOIL"}
COLOURS = {"maml": "black", "lil": "tab:red", "anil": "tab:blue", "boil": "tab:green"}
PANELS = {
    "linearity/phase_consistency": "phase consistency (1: straight)",
    "linearity/amplitude_consistency": "amplitude consistency (1: constant)",
    "linearity/linearisation_error": "linearisation error (0: linear)",
    "linearity/noise": "noise of the step (2: no descent)",
    "linearity/loss_gradient_ratio": "ratio of the loss's gradients",
    "linearity/prototype_agreement": "agreement with the prototypes",
    "linearity/prototype_cosine": "cosine with the prototypes",
    "val/accuracy": "validation accuracy",
}
LINEAR = {
    "linearity/phase_consistency": 1.0,
    "linearity/amplitude_consistency": 1.0,
    "linearity/linearisation_error": 0.0,
}
"""What a linear inner loop has."""
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
Run = dict[str, Any]


def summarize(folder: Path) -> dict[str, Any]:
    """Writes ``lil_curves.csv``, ``.json`` and ``.png`` of all runs in ``folder / "runs"``.

    Args:
        folder: the output folder of ``lil_curves``.

    Returns:
        The summary.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if the runs have different settings.
    """
    paths = sorted((folder / "runs").glob("*-seed*.json"))
    if not paths:
        raise FileNotFoundError(f"There is no finished run in {folder / 'runs'}; make some first, without --aggregate.")
    runs: list[Run] = [read_json(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        same(path, run["settings"], runs[0]["settings"])
    grouped = {name: [run for run in runs if run["algorithm"] == name] for name in NAMES}
    grouped = {name: group for name, group in grouped.items() if group}
    result = {
        "command": "lightning-gp reproduce lil-curves --root <omniglot>",
        "settings": runs[0]["settings"],
        "torch": sorted({run["torch"] for run in runs}),
        "algorithms": {name: _described(group) for name, group in grouped.items()},
        "lil_minus_maml_same_seed": _paired(grouped),
    }
    rows = [{"algorithm": r["algorithm"], "seed": r["seed"], **row} for r in runs for row in r["rows"]]
    write_results(folder, "lil_curves", rows, result, _drawn(grouped))
    return result


def first_iteration(rows: Sequence[Row], threshold: float) -> int | None:
    """The first measured iteration at which the validation accuracy reaches ``threshold``, or None.

    Example:
        >>> first_iteration([{"iteration": 50, "val/accuracy": 0.4}, {"iteration": 100, "val/accuracy": 0.8}], 0.7)
        100
    """
    return next((row["iteration"] for row in rows if row["val/accuracy"] >= threshold), None)


def _described(group: Sequence[Run]) -> dict[str, Any]:
    def of(value: Callable[[Run], float]) -> dict[str, Any]:
        return over_seeds([value(run) for run in group])

    iterations = group[0]["settings"]["iterations"]
    return {
        "seeds": [run["seed"] for run in group],
        "test_accuracy": of(lambda run: run["test_accuracy"]),
        "final": {key: of(lambda run, key=key: run["rows"][-1][key]) for key in PANELS},  # type: ignore[misc]
        "mean_over_training": {key: of(lambda run, key=key: _mean(run, key)) for key in PANELS},  # type: ignore[misc]
        "iterations_to_validation_accuracy": {
            f"{threshold:g}": [first_iteration(run["rows"], threshold) for run in group] for threshold in THRESHOLDS
        },
        "processor_seconds_per_iteration": of(lambda run: run["processor_seconds"] / iterations),
    }


def _mean(run: Run, key: str) -> float:
    return statistics.fmean(row[key] for row in run["rows"])


def _paired(grouped: dict[str, list[Run]]) -> dict[str, Any]:
    """Differences between runs of one seed, which share weights and episodes."""
    by_seed = {name: {run["seed"]: run for run in group} for name, group in grouped.items()}
    seeds = sorted(set(by_seed.get("maml", {})) & set(by_seed.get("lil", {})))
    if not seeds:
        return {"seeds": []}
    pairs = [(by_seed["lil"][seed], by_seed["maml"][seed]) for seed in seeds]
    return {
        "seeds": seeds,
        "test_accuracy": [a["test_accuracy"] - b["test_accuracy"] for a, b in pairs],
        "mean_validation_accuracy": [_mean(a, "val/accuracy") - _mean(b, "val/accuracy") for a, b in pairs],
    }


def _drawn(grouped: dict[str, list[Run]]) -> Figure:
    figure, panels = canvas(4, 2, width=14 / 3, height=4)
    for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
        drawn: list[float] = []
        for name, group in grouped.items():
            iterations = [row["iteration"] for row in group[0]["rows"]]
            columns = zip(*([row[key] for row in run["rows"]] for run in group), strict=True)
            points = [over_seeds(column) for column in columns]
            means = np.array([point["mean"] for point in points])
            deviations = np.array([point["std"] or 0.0 for point in points])
            plural = "seed" if len(group) == 1 else "seeds"
            axes.plot(iterations, means, color=COLOURS[name], label=f"{NAMES[name]}, {len(group)} {plural}")
            axes.fill_between(
                iterations, means - deviations, means + deviations, color=COLOURS[name], alpha=0.2, linewidth=0
            )
            drawn += means[np.isfinite(means)].tolist()
        if key in LINEAR:
            axes.axhline(LINEAR[key], color="grey", linestyle="--", linewidth=1, label="linear")
        if drawn and key.endswith("consistency") and max(drawn) > 10 * min(drawn) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="iteration", ylabel=label)
        axes.legend()
    return figure
