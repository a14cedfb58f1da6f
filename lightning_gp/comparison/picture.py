"""The picture of a comparison: curves with bands over training, and what the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_gp.comparison.intervals import Estimate, mean
from lightning_gp.plots import canvas
from lightning_gp.runs.curves import common_curve
from lightning_gp.runs.ending import SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[int, float]]


def draw(
    curves: Mapping[str, Sequence[Curves]],
    points: Mapping[str, Estimate],
    seeds: Mapping[str, Sequence[float]],
    metric: str,
) -> Figure:
    """Two panels, or that of the test alone where nothing was logged in training.

    Args:
        curves: of each name, what each seed logged.
        points: of each name, the test.
        seeds: of each name, the test of each seed.
        metric: what is compared.

    Returns:
        The figure.
    """
    keys = [f"{stage}/{metric}{end}" for stage, end in (("val", ""), ("train", "_epoch"), ("train", ""))]
    runs = [run for each in curves.values() for run in each]
    key = next((key for key in keys if all(len(run.get(key, ())) > 1 for run in runs)), None)
    figure, panels = canvas(2 if key else 1, width=5.2, height=3.8)
    if key is not None:
        for number, (name, each) in enumerate(curves.items()):
            _curve(panels[0], name, [run[key] for run in each], metric, f"C{number}")
        several = len(next(iter(seeds.values()))) > 1
        title = "mean and 95 % interval over seeds" if several else "one seed"
        panels[0].set(xlabel="step", ylabel=_label(key, metric), title=title)
        panels[0].legend(fontsize=9)
    _points(panels[-1], points, seeds, metric)
    return figure


def _curve(axes: Axes, name: str, seeds: Sequence[Mapping[int, float]], metric: str, color: str) -> None:
    steps, values = common_curve(seeds)
    found = [mean([_scaled(value, metric) for value in each]) for each in values]
    middle = [each.value for each in found]
    axes.plot(steps, middle, color=color, label=name)
    halves = [each.over_seeds for each in found if each.over_seeds is not None]
    if halves:
        low = [value - half for value, half in zip(middle, halves, strict=True)]
        high = [value + half for value, half in zip(middle, halves, strict=True)]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _points(axes: Axes, points: Mapping[str, Estimate], seeds: Mapping[str, Sequence[float]], metric: str) -> None:
    for number, (name, estimate) in enumerate(points.items()):
        color, half = f"C{number}", estimate.half_width
        own = [_scaled(value, metric) for value in seeds[name]]
        axes.plot(own, [number + 0.18] * len(own), "o", color=color, markersize=4, markerfacecolor="none")
        error = None if half is None else _scaled(half, metric)
        axes.errorbar(_scaled(estimate.value, metric), number, xerr=error, fmt="o", color=color, capsize=4)
    axes.set_yticks(range(len(points)), list(points))
    axes.set_ylim(len(points) - 0.5, -0.5)
    over = "seeds" if any(each.over_seeds is not None for each in points.values()) else "episodes"
    axes.set(xlabel=_label(f"test/{metric}", metric), title=f"test: mean, 95 % interval over {over}; circles: seeds")
    axes.grid(axis="x", alpha=0.3)


def _scaled(value: float, metric: str) -> float:
    return 100 * value if metric in SHARES else value


def _label(key: str, metric: str) -> str:
    return f"{key} (%)" if metric in SHARES else key
