"""Statistics of a whole spectrum from products with random vectors: trace, Frobenius norm, spectral density.

Sources:
    [H90] M. F. Hutchinson (1990), A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
    splines.
    [M21] R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff (2021), Hutch++: optimal stochastic trace estimation.
    [G19] B. Ghorbani, S. Krishnan, Y. Xiao (2019), An investigation into neural net optimization via Hessian
    eigenvalue density.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_gp.functional.lanczos import tridiagonal


class Operator(Protocol):
    """A symmetric linear map on flat vectors, shape (size,), such as a `HessianVectorProduct`."""

    @property
    def size(self) -> int:
        """Length of the vectors."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""

    def __call__(self, vector: Tensor, /) -> Tensor:
        """Product with a vector, shape (size,)."""


class Estimate(NamedTuple):
    """A Monte-Carlo estimate.

    Attributes:
        value: the estimate.
        standard_error: of the estimate over its random vectors; NaN with fewer than two, 0 where it is exact.
        products: number of products with the operator.
    """

    value: float
    standard_error: float
    products: int


class SpectralDensity(NamedTuple):
    """Gauss quadrature of the spectral density, one row per random vector.

    Attributes:
        nodes: eigenvalue estimates, shape (probes, steps), float64.
        weights: share of the spectrum at each node, shape (probes, steps), float64; every row sums to one.
        products: number of products with the operator.
    """

    nodes: Tensor
    weights: Tensor
    products: int

    def evaluate(self, grid: Tensor, width: float) -> Tensor:
        """Density on `grid`, shape (points,), smoothed by a Gaussian of standard deviation `width`; integrates to 1."""
        kernel = torch.exp(-(((grid.double()[:, None, None] - self.nodes) / width) ** 2) / 2)
        return (kernel * self.weights).sum((1, 2)) / (len(self.nodes) * width * math.sqrt(2 * math.pi))


def trace(
    operator: Operator, products: int = 30, *, method: Literal["hutch++", "hutchinson"] = "hutch++", seed: int = 0
) -> Estimate:
    """Estimate tr A = E[zᵀ A z], z with independent random signs [H90].

    Hutch++ spends a third of the products on finding the leading subspace, a third on its exact trace and the last on
    what is left, whose variance is smaller [M21].

    Args:
        operator: v -> A v.
        products: budget, at least 2 (3 for Hutch++).
        method: `"hutch++"` or `"hutchinson"`.
        seed: of the random vectors.

    Returns:
        The estimate, its standard error, and the products used.

    Raises:
        ValueError: unknown method or a budget that is too small.

    Example:
        >>> from lightning_gp.functional.hessian_product import hessian_vector_product
        >>> quadratic = hessian_vector_product(lambda p: (p["w"] ** 2).sum(), {"w": torch.ones(5)})
        >>> trace(quadratic, 4, method="hutchinson")
        Estimate(value=10.0, standard_error=0.0, products=4)
    """
    if method not in ("hutch++", "hutchinson"):
        raise ValueError(f"method={method!r} is unknown; use 'hutch++' or 'hutchinson'.")
    least = 3 if method == "hutch++" else 2
    if products < least:
        raise ValueError(f"products={products} is too few for {method}; take at least {least}.")
    generator = torch.Generator(operator.device).manual_seed(seed)
    if method == "hutchinson":
        return _mean([_dot(z, operator(z)) for z in _signs(operator, products, generator)], 0.0, products)
    rank = min(products // 3, operator.size)
    sketch = torch.stack([operator(z) for z in _signs(operator, rank, generator)], 1)
    if not bool(sketch.isfinite().all()):
        return Estimate(math.nan, math.nan, rank)
    q = torch.linalg.qr(sketch)[0]
    exact = sum(_dot(column, operator(column)) for column in q.T)
    if rank == operator.size:
        return Estimate(exact, 0.0, 2 * rank)
    rest = [z - q @ (q.T @ z) for z in _signs(operator, products - 2 * rank, generator)]
    return _mean([_dot(z, operator(z)) for z in rest], exact, products)


def frobenius_norm(operator: Operator, products: int = 30, *, seed: int = 0) -> Estimate:
    """Estimate ‖A‖_F = sqrt(E‖A z‖²), z with independent random signs.

    Args:
        operator: v -> A v.
        products: number of random vectors, at least 2.
        seed: of the random vectors.

    Returns:
        The estimate, its standard error (to first order), and the products used.

    Raises:
        ValueError: fewer than two products.
    """
    if products < 2:
        raise ValueError(f"products={products} is too few for a standard error; take at least 2.")
    generator = torch.Generator(operator.device).manual_seed(seed)
    images = (operator(z) for z in _signs(operator, products, generator))
    square, error, _ = _mean([_dot(image, image) for image in images], 0.0, products)
    norm = math.sqrt(square) if square >= 0 else math.nan
    return Estimate(norm, error / (2 * norm) if norm > 0 else error, products)


def spectral_density(operator: Operator, probes: int = 4, steps: int = 30, *, seed: int = 0) -> SpectralDensity:
    """Stochastic Lanczos quadrature: the density of eigenvalues, averaged over random unit vectors [G19].

    Args:
        operator: v -> A v.
        probes: number of random vectors.
        steps: Lanczos steps each, at most size; a basis of `steps` vectors is held in memory.
        seed: of the random vectors.

    Returns:
        Nodes and weights; all NaN when a product is not finite.

    Raises:
        ValueError: probes or steps below one.
    """
    if probes < 1 or steps < 1:
        raise ValueError(f"probes={probes} and steps={steps} must be at least 1.")
    steps = min(steps, operator.size)
    generator = torch.Generator(operator.device).manual_seed(seed)
    nodes = torch.full((probes, steps), math.nan, dtype=torch.float64)
    weights, products = nodes.clone(), 0
    for row in range(probes):
        start = torch.randn(operator.size, dtype=operator.dtype, device=operator.device, generator=generator)
        projection, used = tridiagonal(operator, start, steps)
        products += used
        if projection is None:
            return SpectralDensity(nodes.fill_(math.nan), weights.fill_(math.nan), products)
        nodes[row], vectors = torch.linalg.eigh(projection)
        weights[row] = vectors[0] ** 2
    return SpectralDensity(nodes, weights, products)


def _signs(operator: Operator, count: int, generator: torch.Generator) -> list[Tensor]:
    def draw() -> Tensor:
        bits = torch.randint(2, (operator.size,), device=operator.device, generator=generator)
        return (2 * bits - 1).to(operator.dtype)

    return [draw() for _ in range(count)]


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))


def _mean(samples: list[float], offset: float, products: int) -> Estimate:
    values = torch.tensor(samples, dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Estimate(offset + float(values.mean()), error, products)
