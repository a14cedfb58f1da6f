"""A picture of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.types import Examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 2  # pixels between images
_LETTERS = 24  # of a class name that are shown


def draw_episode(episode: Environments, names: Sequence[str], title: str) -> Figure:
    """Support images on the left, query images on the right, one row for each class.

    Args:
        episode: the first environment of this batch is drawn; x (E, N·K, channels, height, width) in [0, 1].
        names: of the N classes, in order of label.
        title: above the picture.

    Returns:
        A figure that belongs to no window.

    Raises:
        ImportError: if matplotlib is not installed, with the command that installs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing an episode needs matplotlib, which is not installed: pip install 'lightning-gp[plots]'"
        ) from error
    parts = [("support", episode.support)] + ([] if episode.query is None else [("query", episode.query)])
    mosaics = [mosaic(examples, len(names)) for _, examples in parts]
    widths = [picture.shape[1] for picture in mosaics]
    inches = min(16.0, max(5.0, 0.7 * sum(widths) / mosaics[0].shape[0] * len(names)))
    height = inches * mosaics[0].shape[0] / sum(widths)
    figure = Figure(figsize=(inches + 2.0, height + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(1, len(parts), width_ratios=widths, squeeze=False)[0]
    for axes, (name, _), picture in zip(grid, parts, mosaics, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    row = mosaics[0].shape[0] / len(names)
    grid[0].set_yticks(
        [row * (label + 0.5) for label in range(len(names))], [_short(name) for name in names], fontsize=8
    )
    grid[0].tick_params(length=0)
    return figure


def mosaic(examples: Examples, ways: int) -> NDArray[np.float32]:
    """The first environment's images as one picture: a row for each label, white between them."""
    x, y = examples[0][0], examples[1][0]
    rows = [np.concatenate([_framed(image) for image in x[y == label]], 1) for label in range(ways)]
    picture = np.concatenate(rows, 0)
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def _framed(image: Tensor) -> NDArray[np.float32]:
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.pad(pixels, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=1)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
