"""Learning-rate bounds that keep the third derivative, which ``learning_rates`` leaves out.

Sources:
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, App. D.
    [B01] R. Bhatia (2001), Linear algebra to quantum cohomology: the story of Alfred Horn's inequalities.

The Hessian of the simplified MAML L − (α/2)‖∇L‖² is H − α(Tg + H²), T the third derivative and g the gradient. H and Tg
share no eigenvectors, so their eigenvalues only bound those of the sum. Two ways:

``"weyl"``: Weyl's inequalities [B01] give λ_min(H − αH²) − αλ_max(Tg) and λ_max(H − αH²) − αλ_min(Tg) as bounds of its
smallest and largest eigenvalue. Rates within these bounds converge, whatever H and Tg are, if all their eigenvalues
are given: where H has an eigenvalue 0 and Tg a positive one, no α > 0 is sure.

``"takagi2019"``: λ(H)_i − αλ(Tg)_i in place of the eigenvalues [T19, Eq. 49 and 51], both sorted from the largest. It
supposes that λ_min(H) = 0, that the top k eigenvalues of each matrix are about equal, the others of H about 0 and those
of Tg negative. Where that fails it promises too much: with H = diag(1, 0) and Tg = diag(−c, 0), c > 1, the largest
eigenvalue is 1 − α + αc, more than either of 1 and αc (for α < 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Method = Literal["weyl", "takagi2019"]


def critical_inner_lr_with_tg(
    eigenvalues: Tensor, tg_eigenvalues: Tensor, method: Method = "weyl", complete: bool = True
) -> Tensor:
    """The inner rate up to which H − α(Tg + H²) is sure to be positive semi-definite.

    ``"weyl"``: min_i λ_i / (λ_i² + λ_max(Tg)); ``"takagi2019"``: min_i λ(H)_i / λ(Tg)_i [T19, Eq. 49], over the i whose
    denominator is positive.

    Args:
        eigenvalues: of H, (..., k).
        tg_eigenvalues: of Tg, (..., k) (its largest is what matters).
        method: see the module docstring.
        complete: whether these are all eigenvalues. False puts zeros in the place of the others, in both, as in a
            network of more parameters than directions of curvature (``"takagi2019"`` supposes that anyway).

    Returns:
        (...); ∞ where nothing bounds α, 0 where no α is sure.

    Raises:
        ValueError: if the shapes differ or ``method`` is unknown.

    Example:
        >>> critical_inner_lr_with_tg(torch.tensor([4.0, 1.0]), torch.tensor([1.0, -1.0]))
        tensor(0.2353)
    """
    curvature, tg = _sorted(eigenvalues, tg_eigenvalues, method, complete)
    below = curvature.square() + tg.amax(-1, keepdim=True) if method == "weyl" else tg
    bounds = torch.where(below > 0, (curvature / below).clamp(min=0), torch.inf)
    return torch.where(curvature < 0, 0.0, bounds).amin(-1)


def critical_outer_lr_with_tg(
    eigenvalues: Tensor,
    tg_eigenvalues: Tensor,
    inner_lr: float | Tensor,
    method: Method = "weyl",
    complete: bool = True,
) -> Tensor:
    """The outer rate below which gradient descent on the simplified MAML is sure to converge near its minimum.

    ``"weyl"``: 2 / (max_i(λ_i − αλ_i²) − αλ_min(Tg)); ``"takagi2019"``: min_i 2 / (λ(H)_i − αλ(Tg)_i) [T19, Eq. 51].

    Args:
        eigenvalues: of H, (..., k).
        tg_eigenvalues: of Tg, (..., k); the smallest matters too.
        inner_lr: α ≥ 0, broadcast against (...).
        method: see the module docstring.
        complete: as in ``critical_inner_lr_with_tg``.

    Returns:
        (...); 0 where α exceeds ``critical_inner_lr_with_tg`` or H has a negative eigenvalue, so that the point is not
        sure to be a minimum.

    Raises:
        ValueError: if the shapes differ, ``method`` is unknown, or α is negative.

    Example:
        >>> critical_outer_lr_with_tg(torch.tensor([4.0, 1.0]), torch.tensor([1.0, -1.0]), 0.1)
        tensor(0.8000)
    """
    curvature, tg = _sorted(eigenvalues, tg_eigenvalues, method, complete)
    alpha = torch.as_tensor(inner_lr, dtype=curvature.dtype, device=curvature.device)
    if (alpha < 0).any():
        raise ValueError(f"inner_lr={inner_lr}: inner rates must be at least 0.")
    critical = critical_inner_lr_with_tg(eigenvalues, tg_eigenvalues, method, complete)
    if method == "weyl":
        rate = alpha.unsqueeze(-1)
        largest = (curvature - rate * curvature.square()).amax(-1) - alpha * tg.amin(-1)
    else:
        largest = (curvature - alpha.unsqueeze(-1) * tg).amax(-1)
    repels = (alpha > critical) | (curvature < 0).any(-1)
    return torch.where(repels, 0.0, 2 / largest.clamp(min=0))


def _sorted(eigenvalues: Tensor, tg_eigenvalues: Tensor, method: str, complete: bool) -> tuple[Tensor, Tensor]:
    if method not in ("weyl", "takagi2019"):
        raise ValueError(f"method={method!r} is unknown; use 'weyl' or 'takagi2019'.")
    if eigenvalues.shape != tg_eigenvalues.shape or eigenvalues.ndim == 0 or eigenvalues.shape[-1] == 0:
        raise ValueError(
            f"eigenvalues have shape {tuple(eigenvalues.shape)} and tg_eigenvalues {tuple(tg_eigenvalues.shape)}; both "
            "must hold the same number, at least one, along the last axis."
        )
    if not complete and method == "weyl":
        eigenvalues, tg_eigenvalues = (torch.nn.functional.pad(each, (0, 1)) for each in (eigenvalues, tg_eigenvalues))
    return eigenvalues.sort(descending=True).values, tg_eigenvalues.sort(descending=True).values
