"""Which inner and outer learning rates converge, from the eigenvalues λ of a loss's Hessian.

Sources:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.

Near a minimum θ* of a loss with Hessian H, gradient descent of rate β on an objective acts on every eigenvector of H by
itself: the distance from θ* is multiplied by 1 − βc(λ) per step. It converges exactly if 0 < βc(λ) < 2 for all λ ≠ 0.
c(λ) is the *effective curvature* of the objective:

    penalty L − (α/2)‖∇L‖² (the simplified MAML)       c(λ) = λ − αλ²            [T21, Eq. 16; T19, Eq. 11]
    penalty L + (α/2)‖∇L‖²                             c(λ) = λ + αλ²            [T21, Eq. 28]
    FOMAML, S inner steps of rate α on the same loss   c(λ) = λ(1 − αλ)^S
    MAML, S inner steps of rate α on the same loss     c(λ) = λ(1 − αλ)^{2S}
    inner ascent, first order, S steps                 c(λ) = λ(1 + αλ)^S
    inner ascent, S steps of rate α on the same loss   c(λ) = λ(1 + αλ)^{2S}

The penalties ignore the third derivative. The last four are exact on a quadratic loss: the inner loop maps v = θ − θ*
to (I ∓ αH)^S v, at which the gradient is H(I ∓ αH)^S v. That is the first-order one; the other has the Jacobian
(I ∓ αH)^S once more. So FOMAML with S = 1 is the simplified MAML, first-order ascent with S = 1 the positive penalty,
and the α/2 convention makes α the inner rate. Descent and ascent are one curve over a signed α. A penalty written
as L ∓ a‖∇L‖², without the half, has α = 2a.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_gp import checks

Kind = Literal["fomaml", "maml", "positive_penalty", "first_order_ascent", "ascent"]
Values: TypeAlias = Tensor | np.ndarray[Any, Any] | Sequence[float] | float
KINDS: tuple[Kind, ...] = get_args(Kind)
SECOND_ORDER = ("maml", "ascent")
RISING = ("positive_penalty", "first_order_ascent", "ascent")
"""Whose c(λ) grows with α: nothing bounds α, only β."""


def critical_inner_lr(eigenvalues: Values) -> Any:
    """α_c = 1/λ_max, above which FOMAML and L − (α/2)‖∇L‖² lose their minimum [T21, Eq. 18; T19, Eq. 11].

    MAML with its second derivatives keeps its minimum at any α (on a quadratic loss), as FOMAML does for even S.
    For several environments, pass the eigenvalues of all of them along the last axis [T19, Eq. 23].

    Args:
        eigenvalues: λ of H, (..., k); the largest one is enough.

    Returns:
        (...), of the kind of ``eigenvalues`` (a tensor for numbers); ∞ where no eigenvalue is positive.

    Raises:
        ValueError: if there are no eigenvalues.

    Example:
        >>> critical_inner_lr(torch.tensor([4.0, 1.0]))
        tensor(0.2500)
    """
    values = _eigenvalues(eigenvalues)
    return _like(1 / values.amax(-1).clamp(min=0), eigenvalues)


def critical_outer_lr(
    eigenvalues: Values, inner_lr: Values, kind: Kind = "fomaml", inner_steps: int = 1, complete: bool = True
) -> Any:
    """β_c(α) = min_i 2/c(λ_i): gradient descent converges for outer rates 0 < β < β_c [T21, Eq. 26 and 31].

    c is the effective curvature of this module's docstring. The bound for several environments is that of all their
    eigenvalues together; then it is sufficient, and necessary only if the Hessians share their eigenvectors
    [T19, Eq. 26].

    A negative c makes θ* repel: no rate converges, and β_c is 0. That is so for FOMAML with odd S beyond
    α_c, and for any λ < 0, except under a positive penalty with α ≥ −1/λ, which turns the saddle into a minimum
    (as first-order ascent of odd S does). (The
    inequality [T21] prints after Eq. 28 and in Eq. 31, α ≤ −1/λ, points the other way; dividing Eq. 28 by λ < 0 turns
    it.) To leave negative eigenvalues out of account, as [T21] does, pass ``eigenvalues.clamp(min=0)``: zeros bound
    nothing. Values that differ from 0 only by rounding count as 0.

    Args:
        eigenvalues: λ of H, (..., k). Not only the largest matters near α_c: c(λ) is largest in the middle of the
            spectrum, up to λ = 1/(α(n + 1)) for c = λ(1 − αλ)^n. [T21] takes the top two.
        inner_lr: α ≥ 0, the inner rate, or twice the weight of a penalty without the half; broadcast against (...).
        kind: ``"fomaml"``, for S = 1 also the simplified MAML and the negative penalty; ``"maml"``;
            ``"positive_penalty"``; ``"first_order_ascent"``; ``"ascent"``.
        inner_steps: S ≥ 1.
        complete: whether these are all positive eigenvalues. False takes them for the largest k and allows the others
            to lie anywhere in [0, λ_k], where the largest c has a closed form: a bound that is safe, and not necessary.

    Returns:
        (...), of the kind of ``eigenvalues`` (a tensor for numbers); ∞ where all effective curvatures are 0.

    Raises:
        ValueError: if there are no eigenvalues, α is negative, ``kind`` is unknown, ``inner_steps`` < 1, or > 1 for a
            penalty.

    Example:
        >>> critical_outer_lr(torch.tensor([4.0, 1.0]), torch.tensor([0.0, 0.125, 0.25]))
        tensor([0.5000, 1.0000, 2.6667])
        >>> critical_outer_lr(torch.tensor([4.0, 1.0]), 0.5)
        tensor(0.)
    """
    values = _eigenvalues(eigenvalues)
    alpha = torch.as_tensor(inner_lr, dtype=values.dtype, device=values.device)
    _check(alpha, kind, inner_steps)
    curvature = effective_curvature(values, alpha.unsqueeze(-1), kind, inner_steps)
    bounds = torch.where(curvature < 0, 0.0, 2 / curvature.abs()).amin(-1)
    if not complete:
        bounds = torch.minimum(bounds, 2 / _largest_below(values.amin(-1), alpha, kind, inner_steps))
    return _like(bounds, eigenvalues)


def _largest_below(smallest: Tensor, alpha: Tensor, kind: Kind, inner_steps: int) -> Tensor:
    """The largest c(λ) for 0 ≤ λ ≤ the smallest known eigenvalue: at its end, or where c' = 0."""
    end = smallest.clamp(min=0)
    largest = effective_curvature(end.unsqueeze(-1), alpha.unsqueeze(-1), kind, inner_steps).squeeze(-1).clamp(min=0)
    if kind in RISING:
        return largest
    power = _power(kind, inner_steps)
    turn = 1 / (alpha * (power + 1))
    peak = turn * (power / (power + 1)) ** power
    return torch.where((alpha > 0) & (turn < end), torch.maximum(peak, largest), largest)


def effective_curvature(eigenvalues: Tensor, inner_lr: Tensor, kind: Kind, inner_steps: int = 1) -> Tensor:
    """c(λ) of this module's docstring, elementwise.

    Args:
        eigenvalues: λ, (..., k).
        inner_lr: α, broadcast against ``eigenvalues``.
        kind: as for ``critical_outer_lr``.
        inner_steps: S.

    Returns:
        The broadcast shape.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(map(repr, KINDS))}.")
    checks.whole(1, inner_steps=inner_steps)
    rounding = torch.finfo(eigenvalues.dtype).eps * max(eigenvalues.shape[-1], 4)
    largest = eigenvalues.abs().amax(-1, keepdim=True)
    eigenvalues = torch.where(eigenvalues.abs() <= rounding * largest, 0.0, eigenvalues)
    factor = 1 + inner_lr * eigenvalues if kind in RISING else 1 - inner_lr * eigenvalues
    factor = torch.where(factor.abs() <= rounding, 0.0, factor)
    return eigenvalues * factor ** _power(kind, inner_steps)


def _power(kind: Kind, inner_steps: int) -> int:
    return 2 * inner_steps if kind in SECOND_ORDER else inner_steps


def _eigenvalues(eigenvalues: Values) -> Tensor:
    values = torch.as_tensor(eigenvalues)
    if not isinstance(eigenvalues, (Tensor, np.ndarray)) or not values.is_floating_point():
        values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"eigenvalues have shape {tuple(values.shape)}; the last axis must hold at least one.")
    return values


def _check(inner_lr: Tensor, kind: str, inner_steps: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(map(repr, KINDS))}.")
    checks.whole(1, inner_steps=inner_steps)
    if inner_steps > 1 and kind == "positive_penalty":
        raise ValueError(f"inner_steps={inner_steps}: a penalty has no inner steps; leave it at 1.")
    if (inner_lr < 0).any():
        raise ValueError(f"inner_lr={inner_lr.tolist()}: inner rates must be at least 0.")


def _like(result: Tensor, given: Values) -> Any:
    return result.numpy() if isinstance(given, np.ndarray) else result
