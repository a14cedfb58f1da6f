"""Sums over the processes that train together, differentiable."""

from __future__ import annotations

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
