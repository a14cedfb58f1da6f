"""Whether things are still what they were: tensors by their bits, plain data by value, the rest as the same object."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same numbers bit by bit: NaN is itself, and −0 is not 0."""
    if left.shape != right.shape or left.layout != right.layout:
        return False
    if left.layout == torch.sparse_coo:
        pairs = ((left._indices(), right._indices()), (left._values(), right._values()))
        return all(same_bits(*pair) for pair in pairs)
    if left.layout != torch.strided:
        return same_bits(left.to_dense(), right.to_dense())
    if left.is_complex():
        left, right = torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj())
    bits = BITS.get(left.element_size())
    return torch.equal(left.view(bits), right.view(bits)) if bits else torch.equal(left, right)


def equal(left: object, right: object) -> bool:
    """Whether what was read off something is the same, by value for plain data, and as the same object otherwise."""
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left is right or (left.shape == right.shape and torch.equal(left, right))
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left is right or np.array_equal(left, right)
    if isinstance(left, (int, float, str, bytes, range, type(None))):
        return type(left) is type(right) and left == right
    return left is right
