"""The basis that Lanczos builds: full reorthogonalisation and thick restart.

Sources:
    [WS00] K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
    [D76] J. W. Daniel, W. B. Gragg, L. Kaufman, G. W. Stewart (1976), Reorthogonalization and stable algorithms for
    updating the Gram-Schmidt QR factorization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_gp.functional.long_vectors import HERE, Space

Product = Callable[[Tensor], Tensor]
Which = Literal["largest", "magnitude"]


class KrylovBasis:
    """An orthonormal basis V (rows), the projection T = V A Vᵀ, and the next direction with its length."""

    def __init__(
        self,
        product: Product,
        start: Tensor,
        capacity: int,
        which: Which,
        seed: int,
        random_share: float = 0.0,
        storage: Tensor | None = None,
        space: Space = HERE,
    ) -> None:
        self.product, self.which, self.space = product, which, space
        self.size = space.size(start)
        # Untouched pages of an empty tensor cost nothing, so a basis that stays short stays small.
        shape = (capacity, start.numel())
        self.basis = torch.empty(shape, dtype=start.dtype, device=start.device) if storage is None else storage
        # The small matrix lives on the CPU in float64: it is where cancellation would hurt.
        self.projection = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.generator = space.generator(start.device, seed)
        self.count = self.products = 0
        self.scale = self.length = 0.0
        self.drawn: int | None = None  # where the subspace of the latest random direction begins in the basis
        # Of the Krylov space from the start, or from the latest random direction: see `nothing_hidden`.
        self.random_share, self.log_length = random_share, 0.0
        self.shed = torch.empty(0, dtype=torch.float64)
        self.restarted = False
        norm = space.norm(start.detach())
        self.finite = math.isfinite(norm)
        self.direction = start.detach() / norm if norm else self._drawn()

    def extend(self) -> None:
        """Append the next direction to the basis and multiply it: one product."""
        j = self.count
        if j > 0 and self.length == 0.0:
            self.direction = self._drawn()  # go on outside the subspace that is exhausted
        self.basis[j] = self.direction
        del self.direction  # a product takes most memory, so no vector is held twice meanwhile
        self.direction = image = self.product(self.basis[j]).clone()
        self.products, self.count = self.products + 1, j + 1
        column = self.projection[: j + 1, j]
        # What T already knows of this column is taken off first, so that one more pass over the basis is enough.
        for i in column[:j].nonzero().flatten().tolist():
            image.sub_(self.basis[i], alpha=float(column[i]))
        diagonal = self.space.dot(self.basis[j], image)
        image.sub_(self.basis[j], alpha=diagonal)
        before = self.space.norm(image)
        self.finite = math.isfinite(before) and math.isfinite(diagonal)
        if not self.finite:
            return
        column[j] = diagonal + self._orthogonalise(image)
        self.scale = max(self.scale, float(self.projection[j, : j + 1].norm()), before)
        after = self.space.norm(image)
        if after < 0.7 * before:  # much was cancelled, so what is left is not yet orthogonal [D76]
            column[j] += self._orthogonalise(image)
            after = self.space.norm(image)
        self._advance(image, after)

    def _advance(self, image: Tensor, length: float) -> None:
        j = self.count - 1
        if length <= 10 * torch.finfo(self.basis.dtype).eps * self.scale or self.count == self.size:
            self.length = 0.0  # the basis spans an invariant subspace
            return
        self.length = length
        self.log_length += math.log(length)
        image.div_(length)
        if self.count < len(self.projection):
            self.projection[j + 1, j] = self.projection[j, j + 1] = length

    def _drawn(self) -> Tensor:
        """A random unit direction orthogonal to the basis."""
        self.drawn, self.random_share, self.log_length, self.shed = self.count, 1.0, 0.0, self.shed[:0]
        vector = self.basis.new_empty(self.basis.shape[1]).normal_(generator=self.generator)
        for _ in range(3):
            self._orthogonalise(vector)
            vector /= self.space.norm(vector)
        return vector

    def _orthogonalise(self, vector: Tensor) -> float:
        """Take the basis off `vector` in place; the coefficient of the last basis vector is returned."""
        if self.count == 0:
            return 0.0
        basis = self.basis[: self.count]
        coefficients = self.space.coefficients(basis, vector)
        vector.addmv_(basis.T, coefficients, alpha=-1)
        return float(coefficients[-1])

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values in the wanted order, their vectors in the basis (columns), and residuals."""
        values, vectors, _ = self._decomposed()
        return values, vectors, self.length * vectors[-1].abs()

    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values in the wanted order, their vectors, and which come from the latest random direction or the start.

        What was exhausted before is decomposed apart, so that equal eigenvalues of both stay apart.
        """
        first = self.drawn or 0
        parts = [torch.linalg.eigh(self.projection[a:b, a:b]) for a, b in ((0, first), (first, self.count))]
        values, vectors = torch.cat([part[0] for part in parts]), torch.block_diag(*(part[1] for part in parts))
        order = self._key(values).argsort(descending=True)
        return values[order], vectors[:, order], order >= first

    def _key(self, values: Tensor) -> Tensor:
        return values.abs() if self.which == "magnitude" else values

    def forget_direction(self) -> None:
        """Give back the memory of the next direction, as long as the parameters: nothing will be appended."""
        del self.direction

    def restart(self, keep: int) -> None:
        """Shrink the basis to its leading Ritz vectors; T becomes diagonal, bordered by their couplings [WS00]."""
        keep = min(keep, self.count - 1)
        values, vectors, ours = self._decomposed()
        self.shed = torch.cat([self.shed, values[keep:][ours[keep:]]])
        kept = torch.argsort(ours[:keep].int(), stable=True)  # an exhausted subspace stays in front
        values, vectors = values[kept], vectors[:, kept]
        self.rotate(vectors)
        couplings = self.length * vectors[-1]
        self.projection.zero_()
        self.projection[:keep, :keep] = torch.diag(values)
        self.projection[keep, :keep] = self.projection[:keep, keep] = couplings
        if self.drawn is not None:
            self.drawn = int((~ours[:keep]).sum())
        self.count, self.restarted = keep, True

    def rotate(self, vectors: Tensor) -> None:
        """Replace the first rows of the basis by combinations of all, a strip of columns at a time to save memory."""
        rotation = vectors.T.to(self.basis)
        for strip in self.basis[: self.count].split(2**16, dim=1):
            strip[: len(rotation)] = rotation @ strip
