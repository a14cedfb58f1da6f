"""Linear regression with random scale and bias, the problem on which the learning-rate theory is exact.

[T19] S. Takagi et al. 2019, *Role of two learning rates in convergence of model-agnostic meta-learning*, §5.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.checks import number, whole
from lightning_gp.datamodules.episodes.base import EpisodeDataModule
from lightning_gp.datamodules.episodes.regression import RegressionEpisodes, check_dtype, check_range


class LinearEpisodes(RegressionEpisodes):
    """y = a x + b, a and b uniform per environment."""

    def function(self, x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """``x`` (E, K), ``parameters`` (E, 2) → (E, K)."""
        return parameters[:, :1] * x + parameters[:, 1:]


class LinearRegressionDataModule(EpisodeDataModule):
    """Environments y = a x + b + noise with a, b, x uniform [T19, §5.1].

    A batch has support x, y of shape (E, shots, 1) and query x, y of shape (E, queries, 1). For the full-batch
    experiment of the paper, on one task, take ``environments_per_batch=1`` and ``fixed=True``.

    Args:
        shots: K, support points.
        queries: Q, query points; not used with ``same_data``.
        same_data: whether the query set is the support set.
        fixed: whether all training iterations see the same ``environments_per_batch`` environments.
        scale: range of a.
        bias: range of b.
        x_range: range of x.
        noise: standard deviation of Gaussian noise on y.
        dtype: ``"float32"`` or ``"float64"``.
        environments_per_batch: E, over all devices.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        ValueError: if a count is below 1, a range is empty, the noise negative or the dtype unknown.

    Example:
        >>> data = LinearRegressionDataModule(shots=5, same_data=True, environments_per_batch=1)
        >>> support, query = next(iter(data.train_dataloader()))
        >>> bool((support[0] == query[0]).all())
        True
    """

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        same_data: bool = True,
        fixed: bool = False,
        scale: tuple[float, float] = (0.0, 5.0),
        bias: tuple[float, float] = (0.0, 5.0),
        x_range: tuple[float, float] = (-5.0, 5.0),
        noise: float = 0.0,
        dtype: str = "float32",
        environments_per_batch: int = 1,
        **kwargs: Any,
    ) -> None:
        whole(1, shots=shots, queries=queries)
        number(minimum=0, noise=noise)
        check_range(scale=scale, bias=bias, x_range=x_range)
        super().__init__(environments_per_batch=environments_per_batch, **kwargs)
        self.fixed = fixed
        self._arguments: dict[str, Any] = {
            "parameters": (scale, bias),
            "x_range": x_range,
            "shots": shots,
            "queries": None if same_data else queries,
            "noise": noise,
            "dtype": check_dtype(dtype),
        }

    def make_episodes(self, split: str, length: int) -> LinearEpisodes:
        """Lines of ``split``."""
        period = self.environments_per_batch if self.fixed and split == "train" else None
        return LinearEpisodes(split=split, length=length, seed=self.seed, period=period, **self._arguments)
