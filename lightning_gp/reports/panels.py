"""The curves of a run as pictures that a page can hold."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_gp.dashboards import Curves, sections, shows
from lightning_gp.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGE = "learning_rates/edge"
RATES = ("learning_rates/outer", "learning_rates/outer_critical")
MANY = 8
"""Curves in a panel; more are told in its legend and not drawn."""
Values = Mapping[str, Mapping[int, float]]


class Panel(NamedTuple):
    """A picture of some curves.

    Attributes:
        title: above it.
        keys: what is drawn.
        image: address of the picture, which holds the picture itself.
    """

    title: str
    keys: tuple[str, ...]
    image: str


def panels(curves: Values) -> tuple[dict[str, list[Panel]], dict[str, float]]:
    """A panel for each of the dashboard that has something to show, by section; what none shows is under ``other``.

    Args:
        curves: values by step, by key.

    Returns:
        The panels; and what would be flat lines alone, by key, which is not drawn.
    """
    found: dict[str, list[Panel]] = {}
    constant: dict[str, float] = {}
    waiting = dict.fromkeys(key for key in curves if "cost_seconds/" not in key)

    def add(section: str, title: str, keys: Sequence[str], log_y: bool = False) -> None:
        own = {key: curves[key] for key in keys}
        if all(len(curve) > 1 and len({*curve.values()}) == 1 for curve in own.values()):
            constant.update((key, next(iter(curve.values()))) for key, curve in own.items())
        else:
            found.setdefault(section, []).append(_panel(title, own, log_y))

    for section, each in sections().items():
        for panel in each:
            keys = [key for key in waiting if isinstance(panel, Curves) and shows(panel, key)]
            if keys:
                add(section, panel.title, keys, isinstance(panel, Curves) and panel.log_y)
            for key in keys:
                del waiting[key]
    for key in waiting:
        add("other", key, [key])
    return found, constant


def edge_panel(curves: Values) -> Panel | None:
    """The distance to the edge, with the edge; None where it was not measured."""
    keys = [key for key in curves if key.endswith(EDGE)]
    if not keys:
        return None
    figure, (axes,) = _canvas()
    for key in keys:
        _draw(axes, key, curves[key])
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="the edge")
    _scale(axes, [value for key in keys for value in curves[key].values()] + [1.0], True)
    axes.legend(fontsize=9)
    return Panel("Distance to the edge: rate in use over the largest that converges", tuple(keys), address(figure))


def address(figure: Figure) -> str:
    """A figure as an address that holds it; the same numbers make the same one."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lightning-gp"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _panel(title: str, curves: Values, log_y: bool = False) -> Panel:
    figure, (axes,) = _canvas()
    keys = sorted(curves, key=_order)
    for key in keys[:MANY]:
        _draw(axes, key, curves[key])
    if len(keys) > 1:
        more = f"{len(keys) - MANY} more are in metrics.csv" if len(keys) > MANY else None
        axes.legend(fontsize=8, title=more, title_fontsize=8)
    else:
        axes.set_ylabel(keys[0])
    _scale(axes, [value for key in keys for value in curves[key].values()], log_y)
    return Panel(title, tuple(keys), address(figure))


def _canvas() -> tuple[Figure, list[Axes]]:
    figure, axes = canvas(width=4.6, height=2.9)
    axes[0].set_xlabel("step")
    axes[0].grid(alpha=0.25)
    return figure, axes


def _draw(axes: Axes, key: str, curve: Mapping[int, float]) -> None:
    steps = sorted(curve)
    values = [curve[step] if math.isfinite(curve[step]) else math.nan for step in steps]  # a gap in the line
    axes.plot(steps, values, label=key, marker="o" if len(steps) < 40 else None, markersize=3, linewidth=1.4)


def _scale(axes: Axes, values: Sequence[float], log_y: bool) -> None:
    positive = [value for value in values if 0 < value < math.inf]
    if log_y and positive and all(value > 0 or math.isnan(value) for value in values):
        axes.set_yscale("log")


def _order(key: str) -> tuple[str, list[int]]:
    """By name, numbers as numbers."""
    return re.sub(r"\d+", "", key), [int(number) for number in re.findall(r"\d+", key)]
