"""The picture of a map.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective: Figs. 1 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lightning_gp.plots import canvas
from lightning_gp.theory.learning_rates import Kind, critical_inner_lr, critical_outer_lr
from lightning_gp.trainability.refining import Criterion
from lightning_gp.trainability.result import Array, TrainabilityResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Literal["simplified", "exact", "positive_penalty", "ascent", "first_order_ascent"]
Lines: TypeAlias = Sequence[tuple[str, Sequence[float]]]
"""Labels, and β at each α of the map, (A,)."""
KINDS: dict[str, tuple[Kind, str, str]] = {
    "simplified": ("fomaml", "-", "simplified"),
    "exact": ("maml", ":", "exact"),
    "positive_penalty": ("positive_penalty", "-", "positive penalty"),
    "ascent": ("ascent", ":", "exact, ascent"),
    "first_order_ascent": ("first_order_ascent", "-", "first-order ascent"),
}
RISEN, DIVERGED = "lightsalmon", "lightgray"
COLOURS = ("black", "tab:red", "tab:purple", "tab:brown")
OF_KIND: dict[str | None, tuple[Curve, ...]] = {
    "fomaml": ("simplified",),
    "maml": ("exact",),
    "positive_penalty": ("positive_penalty",),
    "ascent": ("ascent",),
    "first_order_ascent": ("first_order_ascent",),
    None: (),
}
"""The curve of each effective curvature that a rate can have."""


def plot_map(
    result: TrainabilityResult,
    eigenvalues: Sequence[float] = (),
    curves: Sequence[Curve] | None = None,
    title: str = "",
    lines: Lines = (),
    criterion: Criterion = "diverged",
) -> Figure:
    """The loss over (α, β) in colour, diverged cells gray, with the theory's curves; see ``draw_map``.

    Args:
        result: the map.
        eigenvalues: the largest eigenvalues λ_1, λ_2, … of the Hessian, for curves of β_c and the line of α_c.
        curves: which β_c(α) to draw for each eigenvalue; None for that of the map's own objective, its inner steps and
            its sign, as its header has them.
        title: above the picture.
        lines: other borders, such as ones that were measured: a label and β at each α of the map.
        criterion: whose borders are drawn: of training that ``"diverged"``, or whose loss got ``"worse"``, too.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a curve is unknown, or a line has not one β for each α.
        TypeError: if ``result`` is no map.
    """
    figure, (axes,) = canvas()
    draw_map(axes, result, eigenvalues, curves, title, lines, criterion)
    return figure


def draw_map(
    axes: Axes,
    result: TrainabilityResult,
    eigenvalues: Sequence[float] = (),
    curves: Sequence[Curve] | None = None,
    title: str = "",
    lines: Lines = (),
    criterion: Criterion = "diverged",
) -> None:
    """Draws a map into ``axes`` [T21, Fig. 6]. Arguments as for ``plot_map``.

    A cell is gray where a seed diverged, salmon where none did but most ended above their first loss; the colour bar
    has arrows where losses lie beyond it. The dashed line is β_c found at α = 0, the band its range over seeds; the
    white line, of several seeds or refined borders, is that at each α, its range the light band. The theory's
    curves are those of the objective's own inner steps; for a penalty without the half, α ‖∇L‖², its α is twice the
    coefficient.
    """
    if not isinstance(result, TrainabilityResult):
        raise TypeError(
            f"A map is drawn from a TrainabilityResult, got {type(result).__name__}; TrainabilityResult.load reads one "
            "from its file."
        )
    described = result.header["settings"]["objective"]
    curvature = {"kind": "maml", "steps": 1, "factor": 1.0, **described.get("curvature", {})}
    curves = OF_KIND[curvature["kind"]] if curves is None else curves
    unknown = [curve for curve in curves if curve not in KINDS]
    if unknown:
        raise ValueError(f"curves={list(curves)}: {unknown[0]!r} is unknown; use {', '.join(map(repr, KINDS))}.")
    for label, line in lines:
        if len(line) != len(result.inner_lrs):
            raise ValueError(
                f"lines: {label!r} has {len(line)} values, and the map {len(result.inner_lrs)} inner rates."
            )
    horizontal, vertical = edges(result.inner_lrs), edges(result.outer_lrs)
    looks = _draw_cells(axes, result, horizontal, vertical)
    label = described.get("label", described["rate"])
    axes.set(xscale="log", yscale="log", ylabel="outer rate β", title=title)
    axes.set_xlabel(f"{label}\n{caption(result)}")
    axes.set(xlim=(horizontal[0], horizontal[-1]), ylim=(vertical[0], vertical[-1]))
    _draw_zero(axes, result, criterion)
    _draw_border(axes, result, criterion)
    _draw_theory(axes, horizontal, vertical, eigenvalues, curves, curvature)
    for (name, line), colour in zip(lines, COLOURS[1:], strict=False):
        shown = np.where(np.isfinite(line), line, np.nan)
        axes.plot(result.inner_lrs, shown, color=colour, marker=".", linewidth=1.3, label=name)
    drawn, names = axes.get_legend_handles_labels()
    shown_names = [*(look.get_label() for look in looks), *names]
    axes.legend([*looks, *drawn], shown_names, fontsize=7, loc="lower left", framealpha=0.9)


def _draw_cells(axes: Axes, result: TrainabilityResult, horizontal: Array, vertical: Array) -> list[Any]:
    """Three looks: trained in the colour of its loss, risen above its first loss, diverged. Returns the legend's."""
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Patch

    diverged = result.diverged > 0
    risen = ~diverged & (2 * result.worse > len(result.header["seeds"]))  # of most seeds: batches differ, too
    losses = np.where(diverged | risen, np.nan, result.losses)
    positive = losses[losses > 0]
    logarithmic = bool(positive.size) and not (losses < 0).any()  # a negative penalty can make a loss negative
    low, high = limits(positive) if logarithmic else (0.0, 0.0)
    norm = LogNorm(low, high, clip=True) if logarithmic else None
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    clipped = (int((positive < low).any()), int((positive > high).any())) if logarithmic else (0, 0)
    mesh = axes.pcolormesh(horizontal, vertical, losses.T, norm=norm, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label="loss after training", extend=extend[clipped])
    looks = [Patch(facecolor="tab:green", label="trained: colour of the loss")]
    for cells, colour, text in ((risen, RISEN, "loss rose above its first"), (diverged, DIVERGED, "diverged")):
        if cells.any():
            shape = np.where(cells, 1.0, np.nan).T
            axes.pcolormesh(horizontal, vertical, shape, cmap=ListedColormap([colour]))
            looks.append(Patch(facecolor=colour, edgecolor="gray", label=text))
    return looks


def _draw_zero(axes: Axes, result: TrainabilityResult, criterion: Criterion) -> None:
    """The border at α = 0: its median over seeds, and the band of all of them."""
    if result.zero is None:
        return
    bottom, top = axes.get_ylim()
    found = result.seed_borders(0.0, criterion)
    median = float(np.median(found))
    name = "β_c found at α = 0" + (", median and range" if len(found) > 1 else "")
    if len(found) > 1 and not np.isnan(median):
        low, high = np.clip([found.min(), found.max()], bottom, top)  # 0 and ∞ lie beyond the grid
        axes.axhspan(low, high, color="tab:orange", alpha=0.25, linewidth=0)
    if 0 < median < np.inf:
        axes.axhline(median, color="tab:orange", linestyle="--", linewidth=1.5, label=name)


def _draw_border(axes: Axes, result: TrainabilityResult, criterion: Criterion) -> None:
    """The border of each α, where it is more than the edge of the coloured cells: median and range over seeds."""
    several = len(result.header["seeds"]) > 1
    if not several and not result.refined:
        return
    found = np.array([result.seed_borders(alpha, criterion) for alpha in result.inner_lrs])
    low, middle, high = found.min(axis=1), np.median(found, axis=1), found.max(axis=1)
    bottom, top = axes.get_ylim()
    name = "β_c found" + (", median and range" if several else "")
    axes.plot(
        result.inner_lrs, np.clip(middle, bottom, top), color="white", linewidth=1.6, label=name, path_effects=[halo()]
    )
    if several:
        axes.fill_between(result.inner_lrs, *np.clip([low, high], bottom, top), color="white", alpha=0.5, linewidth=0)


def halo() -> Any:
    """Dark edges, so that a white line is seen on light cells and in the legend."""
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=2.8, foreground="black")


def caption(result: TrainabilityResult) -> str:
    """How long was trained, with how many seeds, from which loss."""
    iterations, seeds = result.header["settings"]["iterations"], len(result.header["seeds"])
    text = f"{iterations} iterations, {seeds} seed{'s' if seeds > 1 else ''}; first loss {result.first_loss:.3g}"
    notes = {"a cell fails if one seed does": seeds > 1, "borders bisected": result.refined}
    second = "; ".join(note for note, holds in notes.items() if holds)
    return f"{text}\n{second}" if second else text


def _draw_theory(
    axes: Axes,
    horizontal: Array,
    vertical: Array,
    eigenvalues: Sequence[float],
    curves: Sequence[Curve],
    curvature: Mapping[str, Any],
) -> None:
    factor = curvature["factor"]
    alphas = np.geomspace(horizontal[0], horizontal[-1], 1000)
    for number, (value, colour) in enumerate(zip(eigenvalues, COLOURS, strict=False), 1):
        for curve in curves:
            kind, style, name = KINDS[curve]
            steps = curvature["steps"] if kind == curvature["kind"] else 1
            bounds = np.asarray(critical_outer_lr(np.full((len(alphas), 1), value), factor * alphas, kind, steps))
            shown = np.where((bounds > 0) & (bounds < 10 * vertical[-1]), bounds, np.nan)
            label = f"β_c, λ_{number} = {value:.3g}, {name}{f', S = {steps}' if steps > 1 else ''}"
            axes.plot(alphas, shown, color=colour, linestyle=style, linewidth=1.3, label=label)
    odd = curvature["kind"] != "fomaml" or curvature["steps"] % 2  # an even number of steps keeps the minimum
    if len(eigenvalues) and "simplified" in curves and odd:
        critical = float(critical_inner_lr(np.asarray(eigenvalues, dtype=np.float64))) / factor
        if horizontal[0] < critical < horizontal[-1]:
            axes.axvline(critical, color="tab:gray", linestyle="-.", linewidth=1.3, label=f"α_c = {critical:.3g}")


def edges(centres: Array) -> Array:
    """Borders of the cells of a logarithmic axis, (n + 1,), geometrically halfway between ``centres``, (n,)."""
    logs = np.log(centres)
    inner = (logs[1:] + logs[:-1]) / 2
    steps = (logs[1] - logs[0], logs[-1] - logs[-2]) if len(logs) > 1 else (0.2, 0.2)
    return np.asarray(np.exp([logs[0] - steps[0] / 2, *inner, logs[-1] + steps[1] / 2]))


def limits(losses: Array) -> tuple[float, float]:
    """Ends of the colour scale for positive losses: up to the 95th percentile, and at most eight decades down."""
    high = float(np.quantile(losses, 0.95))
    low = max(float(losses.min()), high * 1e-8)
    return (low, high) if low < high else (low, low * 1.01)
