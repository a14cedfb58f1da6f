"""Sums over processes, so that statistics are those of all environments and not of one process's share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lightning_gp._lightning import Trainer


class Ranks:
    """The processes of a Trainer. Every process must make the same calls in the same order.

    Args:
        trainer: the Trainer.
        device: where numbers are summed.
    """

    def __init__(self, trainer: Trainer, device: torch.device) -> None:
        self.strategy, self.world, self.device = trainer.strategy, trainer.world_size, device
        self.rank = trainer.global_rank
        self.dtype = torch.float32 if device.type == "mps" else torch.float64

    def alone(self) -> Ranks:
        """This process by itself: its sums are its own numbers."""
        one = copy.copy(self)
        one.world, one.rank = 1, 0
        return one

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes of a tensor that the caller gives away."""
        if self.world == 1:
            return tensor
        total: Tensor = self.strategy.reduce(tensor.contiguous(), reduce_op="sum")
        return total

    def totals(self, *values: float | Tensor) -> list[float]:
        """The sum over processes of each number."""
        stacked = torch.stack([torch.as_tensor(value, dtype=self.dtype, device=self.device) for value in values])
        return [float(value) for value in self.sum(stacked)]

    def concatenate(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all processes, n of which may differ, in the order of ranks."""
        if self.world == 1:
            return rows
        own = torch.zeros(self.world, dtype=torch.long, device=self.device)
        own[self.rank] = len(rows)
        counts = [int(count) for count in self.sum(own)]
        # Each process adds its rows into its own place of a tensor of zeros: a gather that every backend can do.
        everything = rows.new_zeros(sum(counts), *rows.shape[1:])
        start = sum(counts[: self.rank])
        everything[start : start + len(rows)] = rows
        return self.sum(everything)
