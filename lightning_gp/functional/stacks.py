"""Tensors of many environments on top of each other."""

from __future__ import annotations

from torch import Tensor


def as_rows(stack: Tensor) -> Tensor:
    """A stack (E, *shape) as a matrix (E, numel), a view; parameters without axes, (E,), as (E, 1)."""
    return stack.flatten(1) if stack.ndim > 1 else stack.unsqueeze(1)
