"""When the Ritz pairs of a Lanczos basis can be trusted, and whether anything can be hidden from it.

Source:
    [P98] B. N. Parlett (1998), The symmetric eigenvalue problem.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gp.functional.krylov_basis import KrylovBasis

GUARD = 0.1  # how far, relative to the last wanted value, the pair below it must have settled
SAFETY = 3.0  # the error estimate is asymptotic: it may be low while neighbours are still moving
NOISE = 30.0  # rounding of one product, in units of eps times the operator's norm
HIDDEN = 0.2  # least part that a random vector is trusted to have in a direction, in standard deviations: 84 % have it


class LanczosBasis(KrylovBasis):
    """A basis that says what it knows of the leading eigenvalues."""

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
        part = HIDDEN * self.random_share / math.sqrt(self.size)
        reached = (edges[:, None] - zeros).abs().log().sum(1) + math.log(part)
        return bool((reached > self.log_length).all())

    def complete(self, k: int) -> bool:
        """Whether nothing is left to find: the whole space is spanned, or what was left holds only smaller values.

        A random direction leans on every eigenvector outside the subspaces exhausted before it, so the leading value
        of its own exhausted subspace bounds all that is left.
        """
        if not self.finite or self.length != 0.0 or self.count < k:
            return False
        if self.count == self.size:
            return True
        if self.drawn is None or self.drawn >= self.count:
            return False
        values, _, ours = self._decomposed()
        keys = self._key(values)
        slack = NOISE * torch.finfo(self.basis.dtype).eps * self.scale
        return int((keys >= keys[ours].max() - slack).sum()) >= k


def _outside(values: Tensor, radii: Tensor) -> Tensor:
    """The borders of intervals around values that do not lie within another of these intervals."""
    edges = values + torch.stack([radii, -radii])
    distances = (edges[:, :, None] - values).abs()
    distances.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return edges[(distances >= radii).all(2)]
