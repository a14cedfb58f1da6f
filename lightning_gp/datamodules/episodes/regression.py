"""Episodes of a function with random parameters, the common part of the regression problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_gp.datamodules.episodes.datasets import EpisodeDataset
from lightning_gp.environments import Environments

Range = tuple[float, float]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def check_dtype(name: str) -> torch.dtype:
    """The dtype called ``name``.

    Raises:
        ValueError: if it is neither float32 nor float64.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r} is unknown; use one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def check_range(**ranges: Range) -> None:
    """Refuses ranges whose end is below their beginning.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, bounds in ranges.items():
        if not (isinstance(bounds, Sequence) and len(bounds) == 2 and bounds[0] <= bounds[1]):
            raise ValueError(f"{name}={bounds!r} is no range; give (lowest, highest) with lowest <= highest.")


class RegressionEpisodes(EpisodeDataset):
    """y = f(x; w) + noise with w drawn once per environment, x once per example, all uniform.

    Args:
        parameters: P ranges, one for each component of w.
        x_range: range of x.
        shots: K, support points.
        queries: Q, query points; None makes the query set the support set itself.
        noise: standard deviation of Gaussian noise on y.
        dtype: of the tensors. Numbers are computed in float64 and rounded once.
        split: see :class:`EpisodeDataset`, as are ``length`` and ``seed``.
        length: episodes in one pass.
        seed: of the episodes.
        period: episode i is episode i mod ``period``; None for endless fresh ones.
    """

    def __init__(
        self,
        parameters: Sequence[Range],
        x_range: Range,
        shots: int,
        queries: int | None,
        noise: float,
        dtype: torch.dtype,
        split: str,
        length: int,
        seed: int,
        period: int | None = None,
    ) -> None:
        super().__init__(split, length, seed)
        self.period = period
        self.ranges = np.array(parameters, dtype=np.float64)
        self.x_range = x_range
        self.shots, self.queries = shots, queries
        self.noise = noise
        self.dtype = dtype

    def function(self, x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """f: ``x`` (E, K), ``parameters`` (E, P) → (E, K)."""
        raise NotImplementedError(f"{type(self).__name__} must define function(x, parameters).")

    def draw(self, indices: NDArray[np.int64]) -> Environments:
        """Support x, y of shape (E, K, 1), query x, y of shape (E, Q, 1)."""
        if self.period is not None:
            indices = indices % self.period
        low, high = self.ranges.T
        points = self.shots + (self.queries or 0)
        numbers = self.uniforms(indices, len(low) + 3 * points)
        parameters = low + (high - low) * numbers[:, : len(low)]
        first, u, v = np.split(numbers[:, len(low) :], 3, axis=1)
        x = self.x_range[0] + (self.x_range[1] - self.x_range[0]) * first
        y = self.function(x, parameters)
        if self.noise:  # Box–Muller; 1 - u is never 0
            y = y + self.noise * np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)

        def examples(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            tensors = (torch.from_numpy(values[:, part, None].copy()).to(self.dtype) for values in (x, y))
            return next(tensors), next(tensors)

        support = examples(slice(0, self.shots))
        return Environments(support, support if self.queries is None else examples(slice(self.shots, None)))
