"""Numbers of single episodes: collected during an evaluation, put together over processes, summed up as an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lightning_gp.functional.processes import Ranks


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean of independent numbers and the half-width of its 95 % interval, t_{0.975, n−1} · s / √n.

    s² is the unbiased variance, t the quantile of Student's distribution (W. S. Gosset, 1908): with few episodes it is
    wider than 1.96 · s / √n.

    Args:
        numbers: one per episode.

    Returns:
        Mean and half-width, both float64; the half-width of a single number is NaN, and a NaN among them makes both so.

    Raises:
        ValueError: if there is no number.

    Example:
        >>> mean, half_width = mean_and_interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(half_width, 3)
        (2.0, 2.484)
    """
    from scipy.stats import t  # here, because it takes a second to import

    count = len(numbers)
    if not count:
        raise ValueError("numbers is empty; the mean of no episodes is not known.")
    values = torch.tensor(numbers, dtype=torch.float64)
    if count == 1:
        return float(values), math.nan
    return float(values.mean()), float(t.ppf(0.975, count - 1)) * float(values.std()) / math.sqrt(count)


class EpisodeValues:
    """What was measured in each episode of a run through the loaders of ``trainer.validate`` or ``trainer.test``.

    Args:
        wanted: number of episodes per loader, over all processes.

    Loaders are known by Lightning's ``dataloader_idx``, None where there is a single one.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._rows: dict[int | None, list[Mapping[str, float]]] = {}

    def missing(self, loader: int | None, processes: int) -> int:
        """How many episodes of a loader this process has yet to measure, if it takes its share of what is wanted."""
        return -(-self.wanted // processes) - len(self._rows.get(loader, ()))

    def add(self, loader: int | None, values: Mapping[str, float]) -> None:
        """The numbers of one episode, by key."""
        self._rows.setdefault(loader, []).append(values)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def gathered(self, ranks: Ranks) -> dict[int | None, list[Mapping[str, float]]]:
        """One row per episode of all processes, in the order of ranks, by loader; every process has to call it."""
        everyone: list[dict[int | None, list[Mapping[str, float]]]] = [self._rows]
        if ranks.world > 1:
            everyone = [{}] * ranks.world
            torch.distributed.all_gather_object(everyone, self._rows)
        loaders = sorted({loader for each in everyone for loader in each}, key=lambda loader: loader or 0)
        return {loader: [row for each in everyone for row in each.get(loader, ())] for loader in loaders}
