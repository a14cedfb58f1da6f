"""Few-shot image classification: what Omniglot, mini-ImageNet and any folder of classes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gp.datamodules.base import EpisodeDataModule, at_least
from lightning_gp.datamodules.episodes import ClassImages, FewShotEpisodes
from lightning_gp.environments import Environments


def to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (E, K, height, width[, 3]) → floating point (E, K, channels, height, width) in [0, 1]."""
    channels_first = x.unsqueeze(2) if x.ndim == 4 else x.movedim(-1, 2)
    return channels_first.to(dtype).div_(255)


class FewShotDataModule(EpisodeDataModule):
    """N-way K-shot Q-query episodes; a subclass defines :meth:`load_split` (and maybe ``prepare_data``).

    A batch leaves the loader as uint8, and is turned into floating point in [0, 1] on the device: support
    x (E, N·K, channels, height, width), y (E, N·K) in 0 … N − 1; query likewise with Q for K.

    Args:
        ways: N, classes per episode.
        shots: K, support images per class.
        queries: Q, query images per class.
        environments_per_batch: E, over all devices.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        ValueError: if a number is below 1; in ``setup``, if there are too few classes or images for it.
    """

    def __init__(
        self, ways: int = 5, shots: int = 1, queries: int = 15, environments_per_batch: int = 32, **kwargs: Any
    ) -> None:
        at_least(1, ways=ways, shots=shots, queries=queries)
        super().__init__(environments_per_batch=environments_per_batch, **kwargs)
        self.ways: int = ways
        self.shots, self.queries = shots, queries

    def load_split(self, split: str) -> ClassImages:
        """The images of ``"train"``, ``"val"`` or ``"test"``."""
        raise NotImplementedError(f"{type(self).__name__} must define load_split(split).")

    def make_episodes(self, split: str, length: int) -> FewShotEpisodes:
        """Episodes over the classes of ``split``."""
        return FewShotEpisodes(self.load_split(split), self.ways, self.shots, self.queries, split, length, self.seed)

    def on_after_batch_transfer(self, batch: Environments, dataloader_idx: int) -> Environments:
        """uint8 → the floating-point type of the module's parameters (float32 without a trainer)."""
        module = None if self.trainer is None else self.trainer.lightning_module
        parameters = () if module is None else module.parameters()
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        (x, y), query = batch
        return Environments((to_float(x, dtype), y), None if query is None else (to_float(query[0], dtype), query[1]))
