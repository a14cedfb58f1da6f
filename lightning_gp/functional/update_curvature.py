"""The leading curvature of the update that training makes, as an optimizer's preconditioner scales it.

Training descends along u(θ), the gradient of its objective or, for first-order algorithms, what they take for it. Near
a fixed point a step with the preconditioner P acts by P^{-1/2}(J + W)P^{-1/2}, J = ∂u/∂θ and W the weight decay that is
added to the gradient (``theory.optimizers``). Where u is a gradient, J is its Hessian and symmetric: Lanczos. Otherwise
its eigenvalues are those of its transpose, Jᵀw = ∂(u·w)/∂θ: one backward pass each, and Arnoldi (scipy's ARPACK).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.held_constant import passing, recorded
from lightning_gp.functional.hessian_product import hessian_vector_product
from lightning_gp.functional.lanczos import leading_eigenpairs
from lightning_gp.functional.starts import search_start
from lightning_gp.types import Parameters

DENSE = 40
"""Number of parameters up to which a matrix that is not symmetric is written out."""
SEVERAL = 3
"""Eigenvalues of a matrix that is not symmetric: one that turns may be less stable than that of largest real part."""


class UpdateJacobian:
    """The linear map w -> Jᵀ w, J = ∂u/∂θ of the update u(θ) of a training objective.

    Attributes:
        symmetric: whether u is the gradient of the objective, so that J is its Hessian; otherwise something was held
            constant (``held_constant``).
        update: u(θ), flat, (size,).
        size: number of parameters.

    Args:
        objective: maps a dict of parameters to a scalar.
        parameters: θ, by name.
        reduce: applied to every flat vector, such as the sum over processes.

    Raises:
        ValueError: if the objective does not depend on the parameters.
        RuntimeError: if an operation has no double backward.
    """

    def __init__(
        self,
        objective: Callable[[Parameters], Tensor],
        parameters: Mapping[str, Tensor],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        with recorded() as self._recording:
            self._product = hessian_vector_product(objective, parameters, reduce=reduce)
        self.symmetric = not self._recording.used
        self.update, self.size = self._product.gradient, self._product.size

    def __call__(self, vector: Tensor) -> Tensor:
        """Jᵀ w.

        Args:
            vector: w, flat, (size,).
        """
        with passing(self._recording):
            return self._product(vector)


def preconditioned(
    product: Callable[[Tensor], Tensor], root: Tensor | None = None, decay: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The map v -> P^{-1/2}(A + W)P^{-1/2} v.

    Args:
        product: v -> A v, flat.
        root: the diagonal of P^{-1/2}, (size,), or None.
        decay: the diagonal of W, (size,), or None.

    Example:
        >>> preconditioned(lambda v: 3 * v, torch.tensor([2.0, 1.0]))(torch.ones(2))
        tensor([12.,  3.])
    """

    def multiply(vector: Tensor) -> Tensor:
        scaled = vector if root is None else root * vector
        result = product(scaled)
        if decay is not None:
            result = result + decay * scaled
        return result if root is None else root * result

    return multiply


class LeadingCurvature(NamedTuple):
    """The curvature at which training comes to its edge first.

    Attributes:
        value: an eigenvalue; the one of the smallest critical rate. NaN if something was not finite.
        residual: ‖A v − λ v‖ of its eigenvector v; 0 for a matrix that was written out.
        vector: v, flat, or None where there is no real one.
        products: number of products with the Jacobian.
        converged: whether the value is as good as ``tol`` asks.
    """

    value: complex
    residual: float
    vector: Tensor | None
    products: int
    converged: bool


def leading_curvature(
    jacobian: UpdateJacobian,
    root: Tensor | None = None,
    decay: Tensor | None = None,
    critical_rate: Callable[[complex], float] | None = None,
    *,
    tol: float = 1e-2,
    initial: Tensor | None = None,
    max_products: int | None = None,
    seed: int = 0,
) -> LeadingCurvature:
    """The eigenvalue of P^{-1/2}(J + W)P^{-1/2} that an optimizer is least stable along.

    Args:
        jacobian: J.
        root: the diagonal of P^{-1/2}, (size,); None for plain gradient descent at one rate.
        decay: the diagonal of W, (size,), or None.
        critical_rate: of an eigenvalue, see ``theory.optimizers``; needed where J is not symmetric. None for gradient
            descent's, 2 Re λ/|λ|².
        tol: relative error allowed.
        initial: a vector to start from, (size,), such as an earlier result's.
        max_products: budget of products.
        seed: of the random start.

    Returns:
        The leading curvature.

    Raises:
        ValueError: if ``tol`` is out of range, or a diagonal has another size than J.

    Example:
        >>> objective = lambda p: (torch.tensor([3.0, 1.0]) * p["w"] ** 2).sum() / 2
        >>> jacobian = UpdateJacobian(objective, {"w": torch.ones(2)})
        >>> round(leading_curvature(jacobian, root=torch.tensor([0.5, 1.0])).value.real, 4)
        1.0
    """
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 1e-2.")
    checks.optional_whole(1, max_products=max_products)
    checks.whole(0, seed=seed)
    seed = int(seed)  # generators take no integers of numpy
    for name, diagonal in (("root", root), ("decay", decay)):
        if diagonal is not None and diagonal.shape != jacobian.update.shape:
            raise ValueError(
                f"{name} has shape {tuple(diagonal.shape)}; it must have one number for each of the {jacobian.size} "
                "parameters."
            )
    if not bool(jacobian.update.isfinite().all()):
        return LeadingCurvature(complex(math.nan), math.nan, None, 0, False)
    count = 0

    multiply = preconditioned(jacobian, root, decay)

    def product(vector: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return multiply(vector)

    start = search_start(jacobian.update, initial, seed)
    if jacobian.symmetric:
        pairs = leading_eigenpairs(
            product,
            start,
            1,
            tol,
            max_products=max_products,
            random_share=1.0 if initial is None else None,
            seed=seed + 1,
        )
        value, vector = complex(float(pairs.values[0])), pairs.vectors[0]
        return LeadingCurvature(value, float(pairs.residuals[0]), vector, count, pairs.converged)
    found = _dense(product, start) if jacobian.size <= DENSE else _arnoldi(product, start, tol, max_products)
    values, residuals, converged = found
    if not values:
        return LeadingCurvature(complex(math.nan), math.nan, None, count, False)
    rate = critical_rate or _gradient_descent
    first = min(range(len(values)), key=lambda i: rate(values[i]))
    return LeadingCurvature(values[first], residuals[first], None, count, converged)


def _gradient_descent(curvature: complex) -> float:
    return 2 * curvature.real / abs(curvature) ** 2 if curvature.real > 0 else math.inf


Found = tuple[list[complex], list[float], bool]


def _dense(product: Callable[[Tensor], Tensor], like: Tensor) -> Found:
    columns = [product(unit) for unit in torch.eye(like.numel(), dtype=like.dtype, device=like.device)]
    values = torch.linalg.eigvals(torch.stack(columns, 1).double().cpu()).tolist()
    return values, [0.0] * len(values), True


def _arnoldi(product: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_products: int | None) -> Found:
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

    def multiply(vector: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        tensor = torch.from_numpy(vector.reshape(-1)).to(start)
        result: np.ndarray[tuple[int], np.dtype[np.float64]] = product(tensor).double().cpu().numpy()
        return result

    size = start.numel()
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    rounds = 50 if max_products is None else max(1, max_products // 10)
    begin = start.double().cpu().numpy()
    converged = True
    try:
        values, vectors = eigs(operator, SEVERAL, which="LR", v0=begin, tol=tol, ncv=4 * SEVERAL, maxiter=rounds)
    except ArpackNoConvergence as error:
        values, vectors, converged = error.eigenvalues, error.eigenvectors, False
    except ArpackError:  # products that are not finite
        return [], [], False
    residuals = [
        float(np.linalg.norm(_complex(multiply, vector) - value * vector))
        for value, vector in zip(values, vectors.T, strict=True)
    ]
    return [complex(value) for value in values], residuals, converged and bool(np.isfinite(values).all())


def _complex(
    multiply: Callable[..., np.ndarray[tuple[int], np.dtype[np.float64]]],
    vector: np.ndarray[tuple[int], np.dtype[np.complex128]],
) -> np.ndarray[tuple[int], np.dtype[np.complex128]]:
    turned = np.array(multiply(np.ascontiguousarray(vector.real)), dtype=np.complex128)
    if vector.imag.any():
        turned += 1j * multiply(np.ascontiguousarray(vector.imag))
    return turned
