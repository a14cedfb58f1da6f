"""Norms and inner products of vectors as long as a network, of which other processes may hold further parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STRIP = 2**20  # vectors are converted to float64 in pieces of this length: a converted copy takes twice their memory


class Space:
    """The vectors of a search.

    Args:
        total: the sum over processes, the same on each, of numbers (n,) that belong to the parts of vectors that they
            hold; None where every process holds whole vectors.
        rank: this process, of those that hold parts.
        world: their number.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] | None = None, rank: int = 0, world: int = 1) -> None:
        self.total, self.rank, self.world = total, rank, world

    def generator(self, device: torch.device, seed: int) -> torch.Generator:
        """Of the random numbers in this process's part."""
        return torch.Generator(device).manual_seed(seed + (self.rank << 32))

    def size(self, vector: Tensor) -> int:
        """The length of the whole vector."""
        return vector.numel() if self.total is None else int(self._summed(float(vector.numel())))

    def norm(self, vector: Tensor) -> float:
        """Accumulated in float64."""
        norms = [torch.linalg.vector_norm(strip, dtype=torch.float64) for strip in vector.split(STRIP)]
        own = float(torch.linalg.vector_norm(torch.stack(norms)))
        return own if self.total is None else self._summed(own**2) ** 0.5

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Accumulated in float64: in float32 alone it loses half the digits."""
        pairs = zip(a.split(STRIP), b.split(STRIP), strict=True)
        own = sum(float(torch.dot(x.double(), y.double())) for x, y in pairs)
        return own if self.total is None else self._summed(own)

    def coefficients(self, rows: Tensor, vector: Tensor) -> Tensor:
        """The inner products (m,) of a vector with rows (m, size)."""
        own = rows @ vector
        return own if self.total is None else self.total(own)

    def _summed(self, number: float) -> float:
        assert self.total is not None
        return float(self.total(torch.tensor([number], dtype=torch.float64)))


HERE = Space()
"""Where every process holds whole vectors."""
