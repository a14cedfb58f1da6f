"""The basis that Lanczos builds: full reorthogonalisation, thick restart, and when its Ritz pairs can be trusted.

Sources:
    [WS00] K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
    [D76] J. W. Daniel, W. B. Gragg, L. Kaufman, G. W. Stewart (1976), Reorthogonalization and stable algorithms for
    updating the Gram-Schmidt QR factorization.
    [P98] B. N. Parlett (1998), The symmetric eigenvalue problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Which = Literal["largest", "magnitude"]

GUARD = 0.1  # how far, relative to the last wanted value, the pair below it must have settled
SAFETY = 3.0  # the error estimate is asymptotic: it may be low while neighbours are still moving
NOISE = 30.0  # rounding of one product, in units of eps times the operator's norm


class LanczosBasis:
    """An orthonormal basis V (rows), the projection T = V A Vᵀ, and the next direction with its length."""

    def __init__(self, product: Product, start: Tensor, capacity: int, which: Which, seed: int) -> None:
        self.product, self.which = product, which
        # Untouched pages of an empty tensor cost nothing, so a basis that stays short stays small.
        self.basis = torch.empty(capacity, start.numel(), dtype=start.dtype, device=start.device)
        # The small matrix lives on the CPU in float64: it is where cancellation would hurt.
        self.projection = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.generator = torch.Generator(start.device).manual_seed(seed)
        self.count = self.products = 0
        self.scale = self.length = 0.0
        self.drawn: int | None = None  # where the subspace of the latest random direction begins in the basis
        norm = _norm(start.detach())
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
        diagonal = _dot(self.basis[j], image)
        image.sub_(self.basis[j], alpha=diagonal)
        before = _norm(image)
        self.finite = math.isfinite(before) and math.isfinite(diagonal)
        if not self.finite:
            return
        column[j] = diagonal + self._orthogonalise(image)
        self.scale = max(self.scale, float(self.projection[j, : j + 1].norm()), before)
        after = _norm(image)
        if after < 0.7 * before:  # much was cancelled, so what is left is not yet orthogonal [D76]
            column[j] += self._orthogonalise(image)
            after = _norm(image)
        self._advance(image, after)

    def _advance(self, image: Tensor, length: float) -> None:
        j = self.count - 1
        if length <= 10 * torch.finfo(self.basis.dtype).eps * self.scale or self.count == self.basis.shape[1]:
            self.length = 0.0  # the basis spans an invariant subspace
            return
        self.length = length
        image.div_(length)
        if self.count < len(self.projection):
            self.projection[j + 1, j] = self.projection[j, j + 1] = length

    def _drawn(self) -> Tensor:
        """A random unit direction orthogonal to the basis."""
        self.drawn = self.count
        vector = self.basis.new_empty(self.basis.shape[1]).normal_(generator=self.generator)
        for _ in range(3):
            self._orthogonalise(vector)
            vector /= _norm(vector)
        return vector

    def _orthogonalise(self, vector: Tensor) -> float:
        """Take the basis off `vector` in place; the coefficient of the last basis vector is returned."""
        if self.count == 0:
            return 0.0
        basis = self.basis[: self.count]
        coefficients = basis @ vector
        vector.addmv_(basis.T, coefficients, alpha=-1)
        return float(coefficients[-1])

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values in the wanted order, their vectors in the basis (columns), and residuals."""
        values, vectors = torch.linalg.eigh(self.projection[: self.count, : self.count])
        order = self._key(values).argsort(descending=True)
        values, vectors = values[order], vectors[:, order]
        return values, vectors, self.length * vectors[-1].abs()

    def settled(self, k: int, tol: float) -> bool:
        """Whether the k leading pairs are as good as asked and the guard pair is on its way."""
        if not self.finite or self.length == 0.0 or self.count <= k:
            return False
        values, _, residuals = self.ritz()
        sizes = values.abs() + NOISE * torch.finfo(self.basis.dtype).eps / tol * self.scale
        gaps = (values[:, None] - values).abs().fill_diagonal_(math.inf).amin(1)
        errors = torch.minimum(residuals, residuals**2 / gaps)[:k]
        return bool((SAFETY * errors <= tol * sizes[:k]).all() and residuals[k] <= GUARD * sizes[k - 1])

    def complete(self, k: int) -> bool:
        """Whether nothing is left to find: the whole space is spanned, or what was left holds only smaller values.

        A random direction leans on every eigenvector outside the subspaces exhausted before it, so the leading value
        of its own exhausted subspace bounds all that is left.
        """
        if not self.finite or self.length != 0.0 or self.count < k:
            return False
        if self.count == self.basis.shape[1]:
            return True
        if self.drawn is None or self.drawn >= self.count:
            return False
        last = self._key(torch.linalg.eigvalsh(self.projection[self.drawn : self.count, self.drawn : self.count]))
        slack = NOISE * torch.finfo(self.basis.dtype).eps * self.scale
        return int((self._key(self.ritz()[0]) >= last.max() - slack).sum()) >= k

    def _key(self, values: Tensor) -> Tensor:
        return values.abs() if self.which == "magnitude" else values

    def restart(self, keep: int) -> None:
        """Shrink the basis to its leading Ritz vectors; T becomes diagonal, bordered by their couplings [WS00]."""
        keep = min(keep, self.count - 1)
        values, vectors, _ = self.ritz()
        self.rotate(vectors[:, :keep])
        couplings = self.length * vectors[-1, :keep]
        self.projection.zero_()
        self.projection[:keep, :keep] = torch.diag(values[:keep])
        self.projection[keep, :keep] = self.projection[:keep, keep] = couplings
        self.count, self.drawn = keep, None

    def rotate(self, vectors: Tensor) -> None:
        """Replace the first rows of the basis by combinations of all, a strip of columns at a time to save memory."""
        rotation = vectors.T.to(self.basis)
        for strip in self.basis[: self.count].split(2**16, dim=1):
            strip[: len(rotation)] = rotation @ strip


STRIP = 2**20  # vectors are converted to float64 in pieces of this length: a converted copy takes twice their memory


def _norm(vector: Tensor) -> float:
    norms = [torch.linalg.vector_norm(strip, dtype=torch.float64) for strip in vector.split(STRIP)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product accumulated in float64: in float32 alone it loses half the digits."""
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(STRIP), b.split(STRIP), strict=True))
