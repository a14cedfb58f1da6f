"""Leading eigenpairs of a symmetric operator that is only known through products with vectors.

Lanczos with full reorthogonalisation, restarted with the leading Ritz vectors when the basis is full, so that memory
is bounded. Without reorthogonalisation Lanczos returns copies of eigenvalues that it has already found.

Sources:
    [WS00] K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
    [D76] J. W. Daniel, W. B. Gragg, L. Kaufman, G. W. Stewart (1976), Reorthogonalization and stable algorithms for
    updating the Gram-Schmidt QR factorization.
    [P98] B. N. Parlett (1998), The symmetric eigenvalue problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Which = Literal["largest", "magnitude"]

BASIS_BYTES = 2**29
"""What the default basis may occupy: 11 vectors of a ResNet-18 in float32."""

GUARD = 0.1  # how far, relative to the last wanted value, the pair below it must have settled
SAFETY = 3.0  # the error estimate is asymptotic: it may be low while neighbours are still moving
NOISE = 30.0  # rounding of one product, in units of eps times the operator's norm


class Eigenpairs(NamedTuple):
    """Leading eigenpairs and how far they can be trusted.

    Attributes:
        values: shape (k,), float64, largest first. NaN when a product was not finite.
        vectors: shape (k, size), orthonormal rows.
        residuals: shape (k,), float64, ‖A v − λ v‖. Some eigenvalue lies within that distance of `values`; the error of
            the value itself is of the order of the residual squared over the gap to its neighbours.
        products: number of products with the operator.
        converged: whether every pair, and the guard pair below them, met the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def leading_eigenpairs(
    product: Product,
    start: Tensor,
    k: int,
    tol: float = 1e-3,
    *,
    which: Which = "largest",
    max_products: int | None = None,
    basis_size: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The k leading eigenpairs A v_i = λ_i v_i of a symmetric operator A.

    Largest algebraic by default: the largest magnitude is ill-posed when both ends of the spectrum are alike.

    It stops when, for k products in a row, the estimated relative error of each of the k values is below `tol` and
    the pair below them has settled too; both guard against an eigenvalue that is still hidden in a cluster. The
    estimate is three times min(r, r²/gap) [P98, ch. 11], with r the residual and gap the distance to the next Ritz
    value. An eigenvalue repeated exactly may be found once only, unless the operator's rank is small.

    Args:
        product: v -> A v on flat vectors, shape (size,).
        start: first vector, shape (size,); its dtype and device are those of the basis. A direction that already leans
            on the wanted eigenvectors saves products; it needs some part in each of them.
        k: number of pairs, at most size.
        tol: relative error allowed in each value.
        which: `"largest"` algebraic, or `"magnitude"` (largest |λ|).
        max_products: budget; by default 100 + 20 k, and at least 2 size for a small operator.
        basis_size: number of basis vectors kept before a restart; by default what fits in 512 MB, at least 2 k + 6.
        seed: of the vectors drawn where an invariant subspace has been exhausted.

    Returns:
        Eigenpairs; not converged rather than an error when the budget ends or a product is not finite.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> diagonal = torch.arange(1.0, 101.0)
        >>> leading_eigenpairs(lambda v: diagonal * v, torch.ones(100), k=2).values.round(decimals=1)
        tensor([100.,  99.], dtype=torch.float64)
    """
    size = start.numel()
    check_arguments(k, size, tol, which, basis_size, max_products)
    if start.dim() != 1 or not start.is_floating_point():
        raise ValueError(f"start must be a flat floating-point vector, got {start.dtype} {tuple(start.shape)}.")
    budget = max_products if max_products is not None else max(100 + 20 * k, 2 * min(size, 200))
    fitting = BASIS_BYTES // (size * start.element_size())
    capacity = min(size, basis_size if basis_size is not None else min(max(2 * k + 6, fitting), 100 + 4 * k))
    state = _Lanczos(product, start, capacity, which, seed)
    in_a_row = 0
    while state.products < budget and state.finite and in_a_row < k:
        if state.count == capacity:
            state.restart(k + max(2, (capacity - k) // 3))
        state.extend()
        if state.complete(k):
            in_a_row = k
        else:
            in_a_row = in_a_row + 1 if state.settled(k, tol) else 0
    return state.leading(k, in_a_row >= k)


def tridiagonal(product: Product, start: Tensor, steps: int) -> tuple[Tensor | None, int]:
    """Plain Lanczos from `start`: the projection of the operator on its Krylov space.

    Args:
        product: v -> A v on flat vectors, shape (size,).
        start: first vector, shape (size,).
        steps: dimension of the space, at most size.

    Returns:
        The symmetric matrix, shape (steps, steps), float64, or None when a product is not finite; and the number of
        products. Where the space is exhausted early it goes on outside it, uncoupled.
    """
    state = _Lanczos(product, start, steps, "largest", seed=0)
    while state.finite and state.count < steps:
        state.extend()
    return (state.projection if state.finite else None), state.products


class _Lanczos:
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
        self.direction = start.detach().clone()
        norm = _norm(self.direction)
        self.finite = math.isfinite(norm)
        if norm == 0.0:
            self._draw()
        else:
            self.direction /= norm

    def extend(self) -> None:
        """Append the next direction to the basis and multiply it: one product."""
        j = self.count
        if j > 0 and self.length == 0.0:
            self._draw()  # go on outside the subspace that is exhausted
        self.basis[j] = self.direction
        image = self.product(self.basis[j]).to(self.basis.dtype, copy=True)
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
        self.direction = image.div_(length)
        if self.count < self.basis.shape[0]:
            self.projection[j + 1, j] = self.projection[j, j + 1] = length

    def _draw(self) -> None:
        """A random unit direction orthogonal to the basis."""
        self.drawn = self.count
        vector = torch.randn(
            self.basis.shape[1], dtype=self.basis.dtype, device=self.basis.device, generator=self.generator
        )
        for _ in range(3):
            self._orthogonalise(vector)
            vector /= _norm(vector)
        self.direction = vector

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
        self._rotate(vectors[:, :keep])
        couplings = self.length * vectors[-1, :keep]
        self.projection.zero_()
        self.projection[:keep, :keep] = torch.diag(values[:keep])
        self.projection[keep, :keep] = self.projection[:keep, keep] = couplings
        self.count, self.drawn = keep, None

    def _rotate(self, vectors: Tensor) -> None:
        """Replace the first rows of the basis by combinations of all, a strip of columns at a time to save memory."""
        rotation = vectors.T.to(self.basis)
        for strip in self.basis[: self.count].split(2**16, dim=1):
            strip[: len(rotation)] = rotation @ strip

    def leading(self, k: int, converged: bool) -> Eigenpairs:
        """The k leading Ritz pairs; the basis is used up."""
        if not self.finite or self.count < k:
            nan = torch.full((k,), math.nan, dtype=torch.float64)
            vectors = self.basis.new_full((k, self.basis.shape[1]), math.nan)
            return Eigenpairs(nan, vectors, nan.clone(), self.products, False)
        values, vectors, residuals = self.ritz()
        self._rotate(vectors[:, :k])
        return Eigenpairs(values[:k].clone(), self.basis[:k].clone(), residuals[:k].clone(), self.products, converged)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product accumulated in float64, a strip at a time: in float32 alone it loses half the digits."""
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(2**20), b.split(2**20), strict=True))


def check_arguments(
    k: int,
    size: int,
    tol: float,
    which: str = "largest",
    basis_size: int | None = None,
    max_products: int | None = None,
) -> None:
    """Refuse what :func:`leading_eigenpairs` cannot work with, before any work is done.

    Raises:
        ValueError: an argument out of range.
    """
    if not 1 <= k <= size:
        raise ValueError(f"k={k} eigenvalues asked of an operator with {size} parameters; take 1 <= k <= {size}.")
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol} is a relative error; take 0 < tol < 1, e.g. 1e-3.")
    if which not in ("largest", "magnitude"):
        raise ValueError(f"which={which!r} is unknown; use 'largest' (algebraic) or 'magnitude'.")
    if basis_size is not None and basis_size < min(size, k + 4):
        raise ValueError(f"basis_size={basis_size} leaves no room for k={k} pairs; take at least {min(size, k + 4)}.")
    if max_products is not None and max_products < 1:
        raise ValueError(f"max_products={max_products} allows no product; take at least 1.")
