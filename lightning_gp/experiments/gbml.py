"""Meta-learning algorithms by one protocol: loss or accuracy against time and memory, on the same number of steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gp.checks import choice, number, whole
from lightning_gp.datamodules.images.omniglot import OmniglotDataModule
from lightning_gp.experiments.gbml_trials import ALGORITHMS, PROBLEMS, QUICK, Settings, path_of, trial
from lightning_gp.plots import canvas, require_matplotlib
from lightning_gp.runs.folders import check_settings
from lightning_gp.runs.records import write_record
from lightning_gp.runs.summaries import as_text, over_seeds
from lightning_gp.runs.trials import Row, changed_from, smallest, spelled_out, spread
from lightning_gp.trainability.grid import check_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = Settings()


def gbml(
    root: str = "data",
    settings: Settings = SETTINGS,
    seeds: Sequence[int] = (0, 1, 2),
    problems: Sequence[str] = tuple(PROBLEMS),
    algorithms: Sequence[str] = tuple(ALGORITHMS),
    quick: bool = False,
    workers: int = 1,
    output: Path = Path("runs/gbml"),
) -> dict[str, Any]:
    """Eight meta-learning algorithms on sinusoids and Omniglot: the same outer steps, the same search over α.

    Each algorithm is trained with every inner rate of the problem, from the same weights on the same episodes; the rate
    with the best validation episodes is reported on test episodes. Memory is that of the tensors of one step, time that
    of a step of the training. A finished trial is kept: start the command again to go on. Hours of one core; quick:
    some ten minutes.

    Args:
        root: folder of the Omniglot data.
        settings: of all trials.
        seeds: of weights and episodes; one number N stands for 0 … N − 1.
        problems: sinusoid, omniglot.
        algorithms: those to compare, by name.
        quick: fewer steps, a smaller network, fewer queries and episodes.
        workers: processes of one thread each; times are those of a core only if there are no more than cores.
        output: folder of gbml.json, .md and .png (with -quick in the names) and of the finished trials.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a name is unknown, a number out of range, or the folder holds trials of other settings.
        FileNotFoundError: if there is no Omniglot.
    """
    if quick:
        settings = replace(settings, **changed_from(SETTINGS, settings, QUICK))
    for name in problems:
        choice(tuple(PROBLEMS), problems=name)
    for name in algorithms:
        choice(tuple(ALGORITHMS), algorithms=name)
    check_seeds(seeds)
    whole(1, workers=workers, **{name: value for name, value in asdict(settings).items() if name != "outer_lr"})
    number(above=0, outer_lr=settings.outer_lr)
    require_matplotlib()
    folder = output / "quick" if quick else output
    jobs = [
        (problem, name, rate, seed)
        for seed in seeds  # seed by seed, so that what is there is a table of fewer seeds
        for problem in problems
        for name in algorithms
        for rate in PROBLEMS[problem].rates
    ]
    for job in jobs:
        check_settings(path_of(folder, *job), asdict(settings))
    if "omniglot" in problems:
        OmniglotDataModule(root, queries=settings.queries).prepare_data()  # missing files show here
    rows = spread(trial, [(*job, settings, root, folder) for job in jobs], workers, _described)
    usual = replace(SETTINGS, **QUICK) if quick else SETTINGS
    chosen = "" if len(problems) == len(PROBLEMS) else f" --problems {' '.join(problems)}"
    summary = {
        "command": spelled_out("lightning-gp reproduce gbml --root <omniglot>", settings, usual, quick, seeds) + chosen,
        "settings": asdict(settings),
        "seeds": list(seeds),
        "problems": {
            problem: {
                name: _summary([row for row in rows if (row["problem"], row["algorithm"]) == (problem, name)])
                for name in algorithms
            }
            for problem in problems
        },
        "torch": torch.__version__,
    }
    path = output / ("gbml-quick" if quick else "gbml")
    write_record(path, summary, table(summary), _draw(summary))
    return summary


def _described(row: Row) -> str:
    value = "not finite" if row["test"] is None else f"{row['test']:.4g}"
    metric = PROBLEMS[row["problem"]].metric
    return f"{row['problem']}, {row['algorithm']}, α = {row['rate']:g}, seed {row['seed']}: {metric} {value}"


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one algorithm on one problem: the rate that validation picks for each seed, and what it costs."""
    problem = PROBLEMS[rows[0]["problem"]]
    by_seed: dict[int, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    picked = [smallest(own, "val", problem.sign) for own in by_seed.values()]
    ended = [row for row in picked if row["test"] is not None]
    return {
        "test": over_seeds([row["test"] for row in ended]) if ended else None,
        "test_ci95": [row["test_ci95"] for row in picked],
        "rates": [row["rate"] for row in picked],
        "failed": sum(row["test"] is None for row in rows),
        "memory": max(row["memory"] for row in rows),
        "milliseconds": 1000 * statistics.median(row["seconds"] for row in rows),
        "processor_milliseconds": 1000 * statistics.median(row["processor_seconds"] for row in rows),
        "trials": [{key: row[key] for key in row if key not in ("settings", "problem", "algorithm")} for row in rows],
    }


def table(summary: Mapping[str, Any]) -> str:
    """The table in markdown, a row for each algorithm and a group of columns for each problem."""
    problems: Mapping[str, Any] = summary["problems"]
    count, heads, names = len(summary["seeds"]), [], list(next(iter(problems.values())))
    for name in problems:
        unit = ", %" if PROBLEMS[name].metric == "accuracy" else ""
        heads += [f"{PROBLEMS[name].title}: {PROBLEMS[name].metric}{unit}", "± over episodes", "α", "ms", "MiB"]
    over = f"{count} seeds: mean ± standard deviation." if count > 1 else "One seed."
    steps = summary["settings"]["iterations"], summary["settings"]["omniglot_iterations"]
    lines = [f"{over} {steps[0]} outer steps on sinusoids, {steps[1]} on Omniglot.\n"]
    lines += [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name in names:
        cells: list[str] = []
        for problem, found in problems.items():
            one, percent = found[name], PROBLEMS[problem].metric == "accuracy"
            factor, digits = (100, 1) if percent else (1, 2)
            widths = [width for width in one["test_ci95"] if width is not None]
            test = one["test"]
            cells += [
                as_text(test["mean"], test["std"], digits, factor) if test else "not finite",
                f"{factor * statistics.fmean(widths):.{digits}f}" if widths else "",
                ", ".join(f"{rate:g}" for rate in sorted(set(one["rates"]))),
                f"{one['processor_milliseconds']:.1f}",
                f"{one['memory'] / 2**20:.1f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _draw(summary: Mapping[str, Any]) -> Figure:
    problems: Mapping[str, Any] = summary["problems"]
    figure, panels = canvas(2, len(problems), width=6, height=4.5)
    costs = {"processor_milliseconds": ("CPU time of an outer step, ms", 1.0), "memory": ("memory, MiB", 2.0**20)}
    for row, (problem, found) in enumerate(problems.items()):
        percent = PROBLEMS[problem].metric == "accuracy"
        factor = 100 if percent else 1
        for column, (cost, (label, unit)) in enumerate(costs.items()):
            axes = panels[2 * row + column]
            for position, (name, one) in enumerate(found.items()):
                if one["test"]:
                    mean, std = factor * one["test"]["mean"], factor * (one["test"]["std"] or 0.0)
                    mark = "os^vDP*X"[position % 8]
                    axes.errorbar(one[cost] / unit, mean, std, marker=mark, linestyle="", capsize=3, label=name)
            axes.set(xscale="log", xlabel=label, ylabel=f"test {PROBLEMS[problem].metric}{', %' if percent else ''}")
            axes.set_title(PROBLEMS[problem].title)
        panels[2 * row + 1].legend(fontsize=8)
    return figure
