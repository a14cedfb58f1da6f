"""Mixed linear regression: what ERM and MAML learn, in closed form.

Source:
    [Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.

Task i has features Φ_i ∈ R^{K×d}, an optimum a_i ∈ R^d and the loss (1/K)‖Φ_i(w − a_i)‖². One inner step of rate α on
it leads from w to w − (2α/K)Φ_iᵀΦ_i(w − a_i), where its loss is (1/K)‖C_i(α)(w − a_i)‖² with the *adapted features*
C_i(α) = Φ_i(I − (2α/K)Φ_iᵀΦ_i). So MAML, with the same data inside and outside, is least squares on adapted features,
and ERM the case α = 0.

Everywhere ``features`` are (N, K, d) and ``optima`` (N, d). Where the tasks do not determine w, it is the solution of
least norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gp import checks


def adapted_features(features: Tensor, inner_lr: float | Tensor) -> Tensor:
    """C_i(α) = Φ_i (I − (2α/K) Φ_iᵀΦ_i) [Z22].

    Args:
        features: Φ, (N, K, d).
        inner_lr: α, a number or a scalar tensor.

    Returns:
        (N, K, d).

    Raises:
        ValueError: if the shape is not (N, K, d).

    Example:
        >>> adapted_features(torch.tensor([[[1.0, 1.0]]]), 0.1)
        tensor([[[0.6000, 0.6000]]])
    """
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(f"features have shape {tuple(features.shape)}; it must be (N, K, d), none of them 0.")
    return features - (2 * inner_lr / features.shape[1]) * (features @ features.mT) @ features


def erm_solution(features: Tensor, optima: Tensor) -> Tensor:
    """w_ERM = (Σ Φ_iᵀΦ_i)⁻¹ Σ Φ_jᵀΦ_j a_j, the minimum of the mean loss [Z22].

    Args:
        features: Φ, (N, K, d).
        optima: a, (N, d).

    Returns:
        (d,).

    Raises:
        ValueError: if the shapes do not fit.
    """
    return maml_solution(features, optima, 0.0)


def maml_solution(features: Tensor, optima: Tensor, inner_lr: float | Tensor) -> Tensor:
    """w_MAML(α) = (Σ C_iᵀC_i)⁻¹ Σ C_jᵀC_j a_j, the minimum of the mean loss after one inner step [Z22].

    Args:
        features: Φ, (N, K, d).
        optima: a, (N, d).
        inner_lr: α.

    Returns:
        (d,).

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> maml_solution(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[1.0], [0.0]]), 0.0)
        tensor([0.2000])
    """
    C = adapted_features(features, inner_lr)
    _check(features, optima)
    weighted = torch.einsum("nkd,nk->d", C, torch.einsum("nkd,nd->nk", C, optima))
    return _inverse(C) @ weighted


def adaptation_loss(
    features: Tensor, optima: Tensor, inner_lr: float | Tensor, parameters: Tensor | None = None
) -> Tensor:
    """(1/NK) Σ ‖C_i(α)(w − a_i)‖², the mean loss after one inner step from w [Z22].

    Args:
        features: Φ, (N, K, d).
        optima: a, (N, d).
        inner_lr: α.
        parameters: w, (d,); None for w_MAML(α) of the same tasks.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> adaptation_loss(torch.ones(1, 1, 1), torch.ones(1, 1), 0.25, torch.zeros(1))
        tensor(0.2500)
    """
    _check(features, optima)
    w = maml_solution(features, optima, inner_lr) if parameters is None else parameters
    return torch.einsum("nkd,nd->nk", adapted_features(features, inner_lr), w - optima).square().mean()


def adaptation_distance(
    parameters: Tensor, features: Tensor, optima: Tensor, inner_lr: float | Tensor, steps: int
) -> Tensor:
    """F_t(w) = (1/N) Σ ‖(I − (2α/K)Φ_iᵀΦ_i)^t (w − a_i)‖², the distance to the optima after t inner steps [Z22].

    Args:
        parameters: w, (d,).
        features: Φ, (N, K, d).
        optima: a, (N, d).
        inner_lr: α of these steps.
        steps: t ≥ 0.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes do not fit or t is negative.

    Example:
        >>> adaptation_distance(torch.zeros(1), torch.ones(1, 1, 1), torch.ones(1, 1), 0.25, steps=2)
        tensor(0.0625)
    """
    _check(features, optima)
    if parameters.shape != optima.shape[1:]:
        raise ValueError(
            f"parameters have shape {tuple(parameters.shape)}; with features {tuple(features.shape)} it must be "
            f"({features.shape[2]},)."
        )
    return _contracted((parameters - optima).unsqueeze(-1), features, inner_lr, steps).square().sum((1, 2)).mean()


def solution_covariance(features: Tensor, inner_lr: float | Tensor) -> Tensor:
    """E[w_MAML w_MAMLᵀ]/σ² over independent optima of mean 0 and covariance σ²I; of w_ERM with α = 0.

    It is S⁻¹ (Σ M_j²) S⁻¹ with M_j = C_j(α)ᵀC_j(α) and S = Σ M_j, and falls like 1/N.

    Args:
        features: Φ, (N, K, d).
        inner_lr: α.

    Returns:
        (d, d).

    Raises:
        ValueError: if the shape is not (N, K, d).
    """
    C = adapted_features(features, inner_lr)
    inverse = _inverse(C)
    return inverse @ torch.einsum("nkd,nke->de", C, (C @ C.mT) @ C) @ inverse


def expected_adaptation_loss(features: Tensor, new_features: Tensor, inner_lr: float | Tensor) -> Tensor:
    """E L_m(w_MAML(α), α)/σ²: learned on some tasks, adapted to new ones, averaged over all optima [Z22].

    It is (1/K) mean_i tr C_i(I + V)C_iᵀ over the new tasks, V the ``solution_covariance``. Its minimum over α is the
    α*(N, K) that ``optimal_adaptation_lr`` estimates.

    Args:
        features: Φ of the N tasks that w_MAML is learned on, (N, K, d).
        new_features: Φ of other tasks, (N', K, d).
        inner_lr: α, inside and at adaptation.

    Returns:
        A scalar.

    Raises:
        ValueError: if a shape is not (N, K, d).
    """
    C = adapted_features(new_features, inner_lr)
    _check_dimension(features, new_features)
    return (C.square().sum((1, 2)) + ((C @ solution_covariance(features, inner_lr)) * C).sum((1, 2))).mean() / C.shape[
        1
    ]


def expected_adaptation_distance(
    features: Tensor, new_features: Tensor, solution_lr: float | Tensor, inner_lr: float | Tensor, steps: int
) -> Tensor:
    """E F_t(w_MAML(α))/σ² over all optima: learned with rate ``solution_lr``, adapted t steps with ``inner_lr`` [Z22].

    Args:
        features: Φ of the N tasks that w_MAML is learned on, (N, K, d).
        new_features: Φ of other tasks, (N', K, d).
        solution_lr: α of w_MAML; 0 for w_ERM.
        inner_lr: rate of the t steps.
        steps: t ≥ 0.

    Returns:
        A scalar.

    Raises:
        ValueError: if a shape is not (N, K, d), or t is negative.
    """
    adapted_features(new_features, 0.0)  # checks the shape
    _check_dimension(features, new_features)
    identity = torch.eye(new_features.shape[2]).to(new_features)
    root = torch.linalg.cholesky(identity + solution_covariance(features, solution_lr))
    return (
        _contracted(root.expand(len(new_features), -1, -1), new_features, inner_lr, steps).square().sum((1, 2)).mean()
    )


def _contracted(vectors: Tensor, features: Tensor, inner_lr: float | Tensor, steps: int) -> Tensor:
    """(I − (2α/K)ΦᵀΦ)^t applied to the columns of ``vectors`` (N, d, columns)."""
    checks.whole(0, steps=steps)
    for _ in range(steps):
        vectors = vectors - (2 * inner_lr / features.shape[1]) * features.mT @ (features @ vectors)
    return vectors


def _inverse(C: Tensor) -> Tensor:
    """(Σ C_iᵀC_i)⁻¹, or the pseudoinverse."""
    flat = C.flatten(0, 1)
    inverse: Tensor = torch.linalg.pinv(flat.mT @ flat, hermitian=True)
    return inverse


def _check_dimension(features: Tensor, new_features: Tensor) -> None:
    if features.shape[-1] != new_features.shape[-1]:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and new_features {tuple(new_features.shape)}; the last axis, "
            "d, must be the same."
        )


def _check(features: Tensor, optima: Tensor) -> None:
    if features.ndim != 3 or 0 in features.shape or optima.shape != (features.shape[0], features.shape[2]):
        raise ValueError(
            f"features have shape {tuple(features.shape)} and optima {tuple(optima.shape)}; they must be (N, K, d) and "
            "(N, d)."
        )
