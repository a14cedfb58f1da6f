"""Every algorithm of the invariance side on colored MNIST by one protocol, and three ways to select a model.

[A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization, section 5.2: the data.
[G21] I. Gulrajani, D. Lopez-Paz (2021), In search of lost domain generalization: a comparison says how it selects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gp.checks import choice, number, whole
from lightning_gp.datamodules.named.colored_mnist import ColoredMNISTDataModule
from lightning_gp.experiments.invariance_trials import (
    ALGORITHMS,
    QUICK,
    Settings,
    chosen_by,
    known_of,
    path_of,
    trial,
)
from lightning_gp.plots import canvas, require_matplotlib
from lightning_gp.runs.folders import check_settings
from lightning_gp.runs.records import write_record
from lightning_gp.runs.summaries import as_text, over_seeds
from lightning_gp.runs.trials import Row, changed_from, spelled_out, spread
from lightning_gp.trainability.grid import check_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = Settings()
WAYS = {"training": "training environments", "objective": "the objective", "test": "the test environment"}


def invariance(
    root: str = "data",
    settings: Settings = SETTINGS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    algorithms: Sequence[str] = tuple(ALGORITHMS),
    quick: bool = False,
    workers: int = 1,
    output: Path = Path("runs/invariance"),
) -> dict[str, Any]:
    """Every invariance algorithm, ERM and the oracle on colored MNIST: the same search, three ways to select a model.

    For each seed every algorithm has four trials, one for each value of its weight (ERM and the oracle: four restarts),
    from the same four initialisations, on the same data, with the same steps. A model is then selected by held-out
    examples of the training environments, by the objective there, or by the test environment, which nobody has. The
    table is mean ± standard deviation over seeds of the selected model's accuracy in the test environment. Trials that
    fail count. A finished trial is kept: start the command again to go on. Some 20 minutes of one core.

    Args:
        root: folder that holds MNIST/raw.
        settings: of all trials.
        seeds: of data and weights; one number N stands for 0 … N − 1.
        algorithms: those to compare, by name.
        quick: a trial run in seconds for each algorithm: few examples and steps, whose numbers say nothing.
        workers: processes of one thread each.
        output: folder of invariance.json, .md and .png (with -quick in the names) and of the finished trials.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an algorithm is unknown, a number out of range, or the folder holds trials of other settings.
        FileNotFoundError: if MNIST is missing.
    """
    if quick:
        settings = replace(settings, **changed_from(SETTINGS, settings, QUICK))
    for name in algorithms:
        choice(tuple(ALGORITHMS), algorithms=name)
    check_seeds(seeds)
    counts = {name: getattr(settings, name) for name in ("examples", "hidden", "iterations")}
    whole(1, workers=workers, **counts)
    whole(0, anneal_steps=settings.anneal_steps)
    number(above=0, lr=settings.lr, held_out=settings.held_out)
    number(minimum=0, l2=settings.l2)
    require_matplotlib()
    folder = output / "quick" if quick else output
    jobs = [
        (name, position, seed) for seed in seeds for name in algorithms for position in range(_trials_of(name))
    ]  # seed by seed, so that what is there is a table of fewer seeds
    for name, position, seed in jobs:
        check_settings(path_of(folder, name, position, seed), known_of(name, position, settings))
    ColoredMNISTDataModule(root, examples=settings.examples, val_fraction=settings.held_out).setup()
    rows = spread(trial, [(*job, settings, root, folder) for job in jobs], workers, _described)
    usual = replace(SETTINGS, **QUICK) if quick else SETTINGS
    summary = {
        "command": spelled_out("lightning-gp reproduce invariance --root <mnist>", settings, usual, quick, seeds),
        "settings": asdict(settings),
        "seeds": list(seeds),
        "algorithms": {name: _summary([row for row in rows if row["algorithm"] == name]) for name in algorithms},
        "seconds": round(sum(row["seconds"] for row in rows)),
        "torch": torch.__version__,
    }
    path = output / ("invariance-quick" if quick else "invariance")
    write_record(path, summary, table(summary), _draw(summary))
    return summary


def _trials_of(name: str) -> int:
    return len(ALGORITHMS[name].values)


def _described(row: Row) -> str:
    algorithm = ALGORITHMS[row["algorithm"]]
    value = f" {algorithm.option} {algorithm.values[row['number']]:g}" if algorithm.option else ""
    shares = ", ".join(f"{key} {row[key]:.1%}" for key in ("val", "test") if row[key] is not None)
    return f"{algorithm.title}{value}, seed {row['seed']}: {shares}{', failed' if row['failed'] else ''}"


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one algorithm: what each way selects, all trials by value, and how many failed."""
    algorithm = ALGORITHMS[rows[0]["algorithm"]]
    by_seed: dict[int, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    picked = [chosen_by(own) for own in by_seed.values()]
    selected = {
        way: {
            "test": over_seeds([one[way]["test"] for one in picked], 100),
            "val": over_seeds([one[way]["val"] for one in picked], 100),
            "values": [algorithm.values[one[way]["number"]] for one in picked] if algorithm.option else None,
        }
        for way in WAYS
    }
    return {
        "title": algorithm.title,
        "option": algorithm.option,
        "selected": selected,
        "failed": sum(row["failed"] for row in rows),
        "trials": [{key: row[key] for key in row if key not in ("settings", "algorithm")} for row in rows],
        "values": algorithm.values if algorithm.option else None,
        "seconds": round(sum(row["seconds"] for row in rows)),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The table in markdown: test accuracy in percent of what each way selects."""
    over = f"mean ± standard deviation of seeds {', '.join(map(str, summary['seeds']))}"
    lines = [
        f"Accuracy in the test environment, %, {over}.\n",
        f"| algorithm | {' | '.join(f'selected by {title}' for title in WAYS.values())} | failed |",
        f"|---|{'---|' * (len(WAYS) + 1)}",
    ]
    for each in summary["algorithms"].values():
        cells = [as_text(own["test"]["mean"], own["test"]["std"], 1) for own in each["selected"].values()]
        failed = f"{each['failed']} of {len(each['trials'])}"
        lines.append(f"| {each['title']} | {' | '.join(cells)} | {failed} |")
    return "\n".join(lines) + "\n"


def _draw(summary: Mapping[str, Any]) -> Figure:
    figure, (left, right) = canvas(2, width=7, height=6)
    each = list(summary["algorithms"].values())
    places = range(len(each))
    for shift, (way, title) in zip((-0.27, 0.0, 0.27), WAYS.items(), strict=True):
        found = [one["selected"][way]["test"] for one in each]
        left.barh(
            [place + shift for place in places],
            [one["mean"] for one in found],
            0.25,
            xerr=[one["std"] or 0.0 for one in found],
            label=title,
        )
    left.set_yticks(list(places), [one["title"] for one in each])
    left.invert_yaxis()
    left.axvline(50, color="black", linestyle="--", linewidth=1)
    left.set(xlabel="accuracy in the test environment, %", xlim=(0, 100), title="Selected by")
    left.legend()
    for position, one in enumerate(each):
        rows = [row for row in one["trials"] if row["val"] is not None and row["test"] is not None]
        marker = "osD^vP"[position % 6]
        label = one["title"]
        right.scatter([100 * row["val"] for row in rows], [100 * row["test"] for row in rows], 18, marker=marker,
                      color=f"C{position % 10}", label=label)  # fmt: skip
    right.set(
        xlabel="accuracy on held-out examples of the training environments, %",
        ylabel="accuracy in the test environment, %",
        title="All trials",
    )
    right.legend(fontsize=8)
    return figure
