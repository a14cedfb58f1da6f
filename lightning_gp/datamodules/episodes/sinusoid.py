"""Sinusoid regression, the toy problem of meta-learning.

[F17] C. Finn, P. Abbeel, S. Levine 2017, *Model-agnostic meta-learning for fast adaptation of deep networks*, §5.1.
[T21] S. Takagi et al. 2021, §IX-A: amplitude, phase and input ranges as here, 10 points, 100 environments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.checks import number, whole
from lightning_gp.datamodules.episodes.base import EpisodeDataModule
from lightning_gp.datamodules.episodes.regression import RegressionEpisodes, check_dtype, check_range


class SinusoidEpisodes(RegressionEpisodes):
    """y = A sin(x − φ), A and φ uniform per environment."""

    def __init__(self, amplitude: tuple[float, float], phase: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(parameters=(amplitude, phase), **kwargs)

    def function(self, x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """``x`` (E, K), ``parameters`` (E, 2) → (E, K)."""
        amplitude, phase = parameters[:, :1], parameters[:, 1:]
        return amplitude * np.sin(x - phase)


class SinusoidDataModule(EpisodeDataModule):
    """Environments y = A sin(x − φ) + noise with A, φ, x uniform [F17, §5.1; T21, §IX-A].

    A batch has support x, y of shape (E, shots, 1) and query x, y of shape (E, queries, 1).

    Args:
        shots: K, support points.
        queries: Q, query points.
        amplitude: range of A.
        phase: range of φ.
        x_range: range of x.
        noise: standard deviation of Gaussian noise on y, support and query alike.
        dtype: ``"float32"`` or ``"float64"``.
        environments_per_batch: E, over all devices.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        ValueError: if a count is below 1, a range is empty, the noise negative or the dtype unknown.

    Example:
        >>> data = SinusoidDataModule(shots=5, queries=7, environments_per_batch=4)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.support[0].shape, batch.query[1].shape
        (torch.Size([4, 5, 1]), torch.Size([4, 7, 1]))
    """

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, float(np.pi)),
        x_range: tuple[float, float] = (-5.0, 5.0),
        noise: float = 0.0,
        dtype: str = "float32",
        environments_per_batch: int = 100,
        **kwargs: Any,
    ) -> None:
        whole(1, shots=shots, queries=queries)
        number(minimum=0, noise=noise)
        check_range(amplitude=amplitude, phase=phase, x_range=x_range)
        super().__init__(environments_per_batch=environments_per_batch, **kwargs)
        self._arguments: dict[str, Any] = {
            "amplitude": amplitude,
            "phase": phase,
            "x_range": x_range,
            "shots": shots,
            "queries": queries,
            "noise": noise,
            "dtype": check_dtype(dtype),
        }

    def make_episodes(self, split: str, length: int) -> SinusoidEpisodes:
        """Sinusoids of ``split``."""
        return SinusoidEpisodes(split=split, length=length, seed=self.seed, **self._arguments)
