"""Leading eigenvalues of the Hessian of a loss at given parameters, without the matrix."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.double_backward import check_parameters
from lightning_gp.functional.hessian_product import HessianVectorProduct, Loss, Reduce
from lightning_gp.functional.lanczos import Eigenpairs, basis_capacity, check_arguments, search
from lightning_gp.functional.starts import search_start, warm_start

# The gradient leans on the leading eigenvectors. A search with restarts, which a short basis means, profits from that:
# on a ResNet-18 it takes half the products. Without restarts it gains nothing.
GRADIENT_WEIGHT = 0.1
SHORT = 20


def hessian_eigenvalues(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    k: int = 2,
    tol: float = 1e-3,
    *,
    initial: Tensor | None = None,
    max_products: int | None = None,
    basis_size: int | None = None,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues of ∇²L(θ), ∇²L v_i = λ_i v_i, λ_1 ≥ λ_2 ≥ …, with their vectors.

    Largest means algebraic, not largest magnitude: the learning-rate bounds need the largest positive curvature, and
    magnitudes jump between the two ends of the spectrum when they are alike.

    Args:
        loss: maps a dict of parameters to a scalar.
        parameters: name -> tensor.
        k: number of eigenvalues.
        tol: relative error allowed in each eigenvalue; see
            :func:`~lightning_gp.functional.lanczos.leading_eigenpairs` for how it is judged.
        initial: vectors to start from, shape (m, size) or (size,), such as `vectors` of an earlier result, or the
            :func:`warm_start` made of them, which is blended into the default start, noise. The search then follows
            these vectors and ends sooner, when the values have settled. Ignored when not finite or zero.
        max_products: budget of Hessian-vector products.
        basis_size: vectors kept in memory, at least k + 2; by default what fits in 256 MB, at least k + 3.
        seed: of the random vector; the global random state is neither used nor changed.
        reduce: as in :func:`hessian_vector_product`. All ranks take the same steps when it returns the same everywhere.

    Returns:
        `values` (k,), `vectors` (k, size), `residuals` (k,), `products`, `converged`; see
        :class:`~lightning_gp.functional.lanczos.Eigenpairs`. Copies of repeated eigenvalues are found. A loss that is
        not finite gives NaN values and `converged=False`, not an error.

    Raises:
        ValueError: k exceeds the number of parameters, or an argument is out of range.
        TypeError: the loss is not a scalar.
        RuntimeError: an operation inside the loss has no double backward.

    Example:
        >>> import torch
        >>> loss = lambda p: (torch.tensor([3.0, 1.0, -5.0]) * p["w"] ** 2).sum() / 2
        >>> hessian_eigenvalues(loss, {"w": torch.ones(3)}, k=2).values.round(decimals=4)
        tensor([3., 1.], dtype=torch.float64)
    """
    check_parameters(parameters)
    size = sum(parameter.numel() for parameter in parameters.values())
    check_arguments(k, size, tol, basis_size=basis_size, max_products=max_products)
    checks.whole(0, seed=seed)
    seed = int(seed)  # generators take no integers of numpy
    product = HessianVectorProduct(loss, parameters, reduce)
    warm = _warm(product, initial)
    gradient_weight = GRADIENT_WEIGHT if basis_capacity(size, product.dtype, k, basis_size) < min(SHORT, size) else 0.0
    pairs = search(
        product,
        _start(product, warm, gradient_weight, seed),
        k,
        tol,
        max_products=max_products,
        basis_size=basis_size,
        random_share=1 / (1 + gradient_weight) if warm is None else None,  # it follows earlier vectors
        seed=seed + 1,
    )
    del product  # its graph makes room for a copy of the vectors alone
    return pairs._replace(vectors=pairs.vectors.clone())


def _warm(product: HessianVectorProduct, initial: Tensor | None) -> Tensor | None:
    """The direction that earlier vectors point to, or None if there is none."""
    if initial is None:
        return None
    if initial.shape[-1] != product.size or initial.dim() > 2:
        raise ValueError(f"initial must have shape (m, {product.size}), got {tuple(initial.shape)}")
    vectors = initial.detach().to(dtype=product.dtype, device=product.device)
    warm = warm_start(vectors.reshape(-1, product.size))
    norm = warm.norm()
    return warm / norm if bool(norm.isfinite()) and bool(norm) else None


def _start(product: HessianVectorProduct, warm: Tensor | None, gradient_weight: float, seed: int) -> Tensor:
    """Hints at the leading vectors blended into noise, so that nothing they are blind to is out of reach.

    A gradient that is not finite is returned itself, and ends the search at once. Otherwise the product forgets it.
    """
    gradient = product.gradient
    length = gradient.norm()
    if not bool(length.isfinite()):
        return gradient
    if warm is not None:
        start = search_start(gradient, warm, seed)
    else:
        hint = gradient / length if gradient_weight and bool(length) else None
        start = search_start(gradient, hint, seed, gradient_weight)
    product.forget_gradient()
    return start
