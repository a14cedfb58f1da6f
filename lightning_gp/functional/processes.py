"""Sums over the processes that train together: differentiable ones, and those of a Trainer's statistics."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Number of processes that train together; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Σ over processes, the same on each of them; differentiable, to any order. The identity on a single process.

    Its backward sums over processes, too: if each computes the same scalar f(Σ_r v_r), then the *mean* over processes
    of their parameter gradients, which is what DDP takes, is the gradient of f.
    """
    if processes() == 1:
        return values
    result: Tensor = _SumOverProcesses.apply(values)
    return result


def mean_over_processes(means: Tensor, count: int) -> Tensor:
    """Means over each process's ``count`` examples, turned into the mean over the examples of all; differentiable."""
    if processes() == 1:
        return means
    weight = means.new_full((), count)
    return sum_over_processes(means * weight) / sum_over_processes(weight)


def mean_of_processes(values: Tensor) -> Tensor:
    """The plain mean over processes of a constant, the same on each of them: what DDP does to gradients."""
    return values.detach() if processes() == 1 else sum_over_processes(values.detach()) / processes()


def gather_over_processes(rows: Tensor) -> Tensor:
    """The constant rows (n, ...) of all processes, n of each, in the order of ranks."""
    if processes() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Tensor:
        result: Tensor = _SumOverProcesses.apply(incoming[0].contiguous())
        return result


class Ranks:
    """The processes of a Trainer: sums of constants, so that a statistic is that of all environments.

    Every process must make the same calls in the same order.

    Args:
        trainer: a Trainer of Lightning.
        device: where numbers are summed.
    """

    def __init__(self, trainer: Any, device: torch.device) -> None:
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
