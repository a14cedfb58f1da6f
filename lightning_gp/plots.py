"""Figures of what the callbacks measure. They never touch pyplot, so they need no display and leave no global state."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_gp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "Figures need matplotlib, which is not installed: pip install 'lightning-gp[plots]'"
NUMBERED = 12  # a matrix of at most this many rows has its values written into the cells


def require_matplotlib() -> None:
    """Checks that figures can be drawn, before long work.

    Raises:
        ImportError: if matplotlib is not installed, with the command that installs it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(MISSING)


def cosine_matrix(cosines: Tensor, title: str = "Cosine between environments' gradients") -> Figure:
    """A picture of the cosines between environments; undefined ones stay blank.

    Args:
        cosines: (E, E), in [−1, 1] or NaN.
        title: above the picture.

    Returns:
        The figure.
    """
    values = _array(cosines)
    figure, axes = _titled(title)
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(image, ax=axes)
    axes.set(xlabel="environment", ylabel="environment")
    if len(values) <= NUMBERED:
        axes.set_xticks(range(len(values)))
        axes.set_yticks(range(len(values)))
        for (row, column), value in np.ndenumerate(values):
            dark = abs(value) > 0.6
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
    return figure


def histogram(values: Tensor, xlabel: str, title: str = "", bins: int = 30) -> Figure:
    """A histogram of one number per environment, with its mean; values that are not finite are counted in the title.

    Args:
        values: any shape.
        xlabel: what the numbers are.
        title: above the picture.
        bins: number of bars.

    Returns:
        The figure.
    """
    numbers = _array(values).ravel()
    finite = numbers[np.isfinite(numbers)]
    left_out = numbers.size - finite.size
    figure, axes = _titled(f"{title} ({left_out} not finite)".strip() if left_out else title)
    if finite.size:
        axes.hist(finite, bins=bins)
        axes.axvline(finite.mean(), color="black", linestyle="--", label=f"mean {finite.mean():.4g}")
        axes.legend()
    axes.set(xlabel=xlabel, ylabel="count")
    return figure


def spectral_density(grid: Tensor, density: Tensor, title: str = "Spectral density of the Hessian") -> Figure:
    """The density of eigenvalues over the real line, on a logarithmic scale.

    Args:
        grid: (n,) eigenvalues, ascending.
        density: (n,) density at each.
        title: above the picture.

    Returns:
        The figure.
    """
    heights = _array(density)
    figure, axes = _titled(title)
    axes.plot(_array(grid), np.where(heights > 0, heights, np.nan))
    axes.set(xlabel="eigenvalue", ylabel="density")
    if (heights > 0).any():
        # A few decades below the peak are smoothing noise; showing them would flatten what matters.
        axes.set_yscale("log")
        axes.set_ylim(bottom=float(np.nanmax(heights)) * 1e-8)
    return figure


def draw_critical_rates(
    axes: Axes, inner_rates: Tensor, curves: Mapping[str, Tensor], safe: Tensor, inner_critical: float | None
) -> None:
    """Draws the critical outer rate over the inner rate for each eigenvalue [T21, Fig. 1; T19, Fig. 2] into a panel.

    Coloured is where both rates converge, dashed β_c of the first α; the outer rate is on a logarithmic axis.

    Args:
        axes: the panel.
        inner_rates: α, (n,).
        curves: β_c(α) of each eigenvalue by label, (n,); 0 where no rate converges.
        safe: the bound for any eigenvalues below the smallest known one, (n,).
        inner_critical: α_c, marked by a line; None where there is none.
    """
    alphas = _array(inner_rates)
    known = np.stack([_array(curve) for curve in curves.values()])
    for label, curve in curves.items():
        beta = _array(curve)
        axes.plot(alphas, np.where(beta > 0, beta, np.nan), label=label)
    lowest = known.min(0)
    axes.fill_between(alphas, 1e-30, np.where(lowest > 0, lowest, np.nan), color="0.9", label="converges for these")
    axes.axhline(lowest[0], color="0.5", linestyle="--", linewidth=1, label=f"β_c at α = {alphas[0]:.3g}")
    bound = _array(safe)
    axes.plot(alphas, np.where(bound > 0, bound, np.nan), "k--", label="safe for any smaller eigenvalue")
    if inner_critical is not None:
        axes.axvline(inner_critical, color="0.5", linestyle=":", label="α_c = 1/λ_1")
    axes.set_yscale("log")
    finite = bound[np.isfinite(bound) & (bound > 0)]
    axes.set_ylim(finite.min() / 3, finite.max() * 30)
    axes.set(xlabel="inner rate α", ylabel="critical outer rate β_c")
    axes.legend(fontsize=8)


def canvas(
    columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 4.8, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, made without a display.

    Args:
        columns: panels side by side.
        rows: of panels, one below the other.
        width: of a panel, in inches.
        height: of a panel.
        **options: of matplotlib's ``Figure.subplots``, such as ``sharey``.

    Returns:
        The figure, and the panels row by row.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False, **options)).flat)


def save_figure(figure: Figure, path: str | Path, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Writes a figure, each file whole or not at all; the same numbers make the same file.

    Args:
        figure: the figure.
        path: where to; the extension is replaced.
        kinds: extensions, ``"png"`` or ``"pdf"``.

    Returns:
        The files.
    """
    written = []
    for kind in kinds:
        target = Path(path).with_suffix(f".{kind}")
        metadata: dict[str, Any] = {"CreationDate": None} if kind == "pdf" else {"Software": None}  # no date
        with replacing(target) as temporary:
            figure.savefig(temporary, dpi=150, format=kind, metadata=metadata)
        written.append(target)
    return written


def _titled(title: str) -> tuple[Figure, Axes]:
    figure, (axes,) = canvas(width=5, height=4)
    axes.set_title(title)
    return figure, axes


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().cpu().double().numpy()
