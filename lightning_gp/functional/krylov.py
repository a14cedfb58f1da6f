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
HIDDEN = 0.2  # least part that a random vector is trusted to have in a direction, in standard deviations: 84 % have it


class LanczosBasis:
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
    ) -> None:
        self.product, self.which = product, which
        # Untouched pages of an empty tensor cost nothing, so a basis that stays short stays small.
        shape = (capacity, start.numel())
        self.basis = torch.empty(shape, dtype=start.dtype, device=start.device) if storage is None else storage
        # The small matrix lives on the CPU in float64: it is where cancellation would hurt.
        self.projection = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.generator = torch.Generator(start.device).manual_seed(seed)
        self.count = self.products = 0
        self.scale = self.length = 0.0
        self.drawn: int | None = None  # where the subspace of the latest random direction begins in the basis
        # Of the Krylov space from the start, or from the latest random direction: see `nothing_hidden`.
        self.random_share, self.log_length = random_share, 0.0
        self.shed = torch.empty(0, dtype=torch.float64)
        self.restarted = False
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

    def forget_direction(self) -> None:
        """Give back the memory of the next direction, as long as the parameters: nothing will be appended."""
        del self.direction

    def settled(self, k: int, tol: float) -> bool:
        """Whether the k leading pairs are as good as asked and the guard pair is on its way."""
        if not self.finite or self.length == 0.0 or self.count <= k:
            return False
        values, _, residuals = self.ritz()
        guarded = residuals[k] <= GUARD * self._sizes(values[k - 1], tol)
        return bool(guarded) and self._accurate(values, residuals, k, tol)

    def _accurate(self, values: Tensor, residuals: Tensor, k: int, tol: float) -> bool:
        """Whether the k leading values are close to eigenvalues, whichever these are."""
        gaps = (values[:, None] - values).abs().fill_diagonal_(math.inf).amin(1)
        errors = torch.minimum(residuals, residuals**2 / gaps)[:k]
        return bool((SAFETY * errors <= tol * self._sizes(values[:k], tol)).all())

    def _sizes(self, values: Tensor, tol: float) -> Tensor:
        """What errors are relative to; times ``tol`` it is never below the rounding of a product."""
        return values.abs() + NOISE * torch.finfo(self.basis.dtype).eps / tol * self.scale

    def nothing_hidden(self, k: int, tol: float) -> bool:
        """Whether an eigenvalue beyond the k leading Ritz values would have shown by now.

        For the start v and the Ritz values θ_i, those shed by restarts included, ‖Π_i (A − θ_i) v‖ is the product of
        the lengths of all directions so far [P98, ch. 7, 12]. So if v has the part c in an eigenvector of λ, then
        c Π_i |λ − θ_i| is at most that: a λ where it is more does not exist. It is asked of every λ that leads the k-th
        Ritz value by ``tol``, except within a tenth of ``tol`` of those before it, which one eigenvalue each accounts
        for. Between zeros the logarithm of the product is concave, so the borders decide.

        The part c is that of the random share of v; the statement holds with a probability, which `HIDDEN` decides.
        """
        if not self.finite or self.length == 0.0 or self.count < k:
            return False
        values, _, residuals = self.ritz()
        if not self._accurate(values, residuals, k, tol):
            return False
        radii = tol / 10 * self._sizes(values[:k], tol)
        radii[-1] *= 10 / (1 + tol)  # relative to the eigenvalue, not to the Ritz value
        edges = _outside(values[:k], radii)
        edges = torch.cat([edges, -values[k - 1 : k] - radii[-1], -values[k - 1 : k] + radii[-1]])  # both ends may lead
        return self._excluded(edges[self._key(edges) > self._key(values[k - 1])])

    def above(self, level: float) -> int:
        """How many Ritz values lead a value."""
        return int((self._key(self.ritz()[0]) > level).sum()) if self.finite and self.count else 0

    def nothing_above(self, level: float, tol: float) -> bool:
        """Whether the Ritz values that lead ``level`` are accurate, and no other eigenvalue leads it.

        As ``nothing_hidden``, with a border that is known before.

        Args:
            level: |λ| or λ, by what is wanted.
            tol: relative error allowed.
        """
        if not self.finite or self.length == 0.0:
            return False
        values, _, residuals = self.ritz()
        k = self.above(level)
        if k and not self._accurate(values, residuals, k, tol):
            return False
        edges = _outside(values[:k], tol / 10 * self._sizes(values[:k], tol))
        border = torch.tensor([level] if self.which == "largest" else [level, -level], dtype=torch.float64)
        return self._excluded(torch.cat([edges[self._key(edges) > level], border]))

    def _excluded(self, edges: Tensor) -> bool:
        """Whether there would have to be more of the start than it has, if any of these were an eigenvalue."""
        values, _, ours = self._decomposed()
        zeros = torch.cat([values[ours], self.shed])
        part = HIDDEN * self.random_share / math.sqrt(self.basis.shape[1])
        reached = (edges[:, None] - zeros).abs().log().sum(1) + math.log(part)
        return bool((reached > self.log_length).all())

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
        values, _, ours = self._decomposed()
        keys = self._key(values)
        slack = NOISE * torch.finfo(self.basis.dtype).eps * self.scale
        return int((keys >= keys[ours].max() - slack).sum()) >= k

    def _key(self, values: Tensor) -> Tensor:
        return values.abs() if self.which == "magnitude" else values

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


def _outside(values: Tensor, radii: Tensor) -> Tensor:
    """The borders of intervals around values that do not lie within another of these intervals."""
    edges = values + torch.stack([radii, -radii])
    distances = (edges[:, :, None] - values).abs()
    distances.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return edges[(distances >= radii).all(2)]


STRIP = 2**20  # vectors are converted to float64 in pieces of this length: a converted copy takes twice their memory


def _norm(vector: Tensor) -> float:
    norms = [torch.linalg.vector_norm(strip, dtype=torch.float64) for strip in vector.split(STRIP)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product accumulated in float64: in float32 alone it loses half the digits."""
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(STRIP), b.split(STRIP), strict=True))
