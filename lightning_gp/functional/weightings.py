"""Weights of environments from their losses and the Gram matrix of their gradients.

A *weighting* maps losses (E,) and the Gram matrix ⟨g_τ, g_σ⟩ (E, E) to weights w (E,), held constant: training then
descends along Σ_τ w_τ g_τ. All agree with the mean, w_τ = 1/E, where the environments do.

Sources:
    [S20] S. Sagawa et al. (2020), Distributionally robust neural networks for group shifts.
    [D12] J.-A. Désidéri (2012), Multiple-gradient descent algorithm (MGDA) for multiobjective optimization.
    [Y20] T. Yu et al. (2020), Gradient surgery for multi-task learning.
    [Q24] P. Quinton, V. Rey (2024), Jacobian descent for multi-objective optimization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gp.functional.gradients import matrix
from lightning_gp.types import Parameters, Weighting


def gram_matrix(gradients: Parameters) -> Tensor:
    """Re⟨g_τ, g_σ⟩ over all parameters, (E, E), in float32 or better.

    Args:
        gradients: a stack, tensors (E, *shape).

    Raises:
        ValueError: if there is no parameter.

    Example:
        >>> gram_matrix({"w": torch.tensor([[1.0, 0.0], [2.0, 1.0]])})
        tensor([[1., 2.],
                [2., 5.]])
    """
    if not gradients:
        raise ValueError("There are no gradients: the dict of parameters is empty.")
    rows = [matrix(value) for value in gradients.values()]
    return torch.stack([row @ row.T for row in rows]).sum(0)


def group_dro_weights(losses: Tensor, gram: Tensor, eta: float = 1.0) -> Tensor:
    """W ∝ exp(η L_τ): the gradient of the soft maximum (1/η) log mean_τ exp(η L_τ) [S20].

    The weights are those of the losses at hand. [S20]'s own also remember the losses of earlier steps.

    Args:
        losses: (E,).
        gram: not used.
        eta: η ≥ 0; 0 is the mean, large is the worst environment alone.

    Example:
        >>> group_dro_weights(torch.tensor([0.0, 1.0]), torch.eye(2), eta=0.0)
        tensor([0.5000, 0.5000])
    """
    return torch.softmax(eta * losses, 0)


def mgda_weights(losses: Tensor, gram: Tensor) -> Tensor:
    """The shortest vector in the convex hull of the gradients: argmin wᵀ G w, w ≥ 0, Σ w = 1 [D12].

    It falls for every environment, as fast as possible for the one it falls slowest for. Constants: no derivative.

    Args:
        losses: not used.
        gram: (E, E).

    Example:
        >>> mgda_weights(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7500, 0.2500])
    """
    # With s = Σ y and y = s w the minimum of ‖A y‖² + (Σ y − 1)² over s is q/(1 + q), q = wᵀ G w: the same w.
    root, scale = _root(gram)
    if scale == 0:
        return torch.full_like(losses, 1 / len(losses))
    system = torch.cat([root, torch.ones_like(root[:1])])
    target = torch.zeros_like(system[:, 0])
    target[-1] = 1
    y = _non_negative(system, target)
    return (y / y.sum()).to(gram)


def pcgrad_weights(losses: Tensor, gram: Tensor) -> Tensor:
    """The mean of the gradients, each freed of its components against the others [Y20].

    From g_τ the projection on every g_σ with ⟨g_τ, g_σ⟩ < 0 is taken away, one after the other: in the order of their
    cosines with g_τ, the worst first, where [Y20] draws the order; so the environments may come in any order. The mean
    of what is left, where [Y20] has the sum.

    Args:
        losses: not used.
        gram: (E, E).

    Example:
        >>> pcgrad_weights(torch.zeros(2), torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
        tensor([0.7500, 0.7500])
    """
    count, lengths = len(gram), gram.diagonal()
    units = torch.eye(count, dtype=gram.dtype, device=gram.device)
    cosines = (gram / lengths.clamp(min=torch.finfo(gram.dtype).tiny).sqrt()).detach()
    rows = []
    for own in range(count):
        row = units[own]
        for other in cosines[own].argsort(stable=True).tolist():
            product = row @ gram[other]
            if other != own and product < 0 and lengths[other] > 0:
                row = row - product / lengths[other] * units[other]
        rows.append(row)
    return torch.stack(rows).mean(0) + 0 * gram.sum()  # a derivative also where nothing conflicts: 0


def upgrad_weights(losses: Tensor, gram: Tensor) -> Tensor:
    """The mean of the gradients, each projected on the cone of directions along which no environment gets worse [Q24].

    The projection of g_τ is Σ_σ v_σ g_σ, v = argmin vᵀ G v with v ≥ e_τ. Constants: no derivative.

    Args:
        losses: not used.
        gram: (E, E).

    Example:
        >>> upgrad_weights(torch.zeros(2), torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
        tensor([0.7500, 0.7500])
    """
    root, scale = _root(gram)
    units = torch.eye(len(gram), dtype=root.dtype)
    if scale == 0:
        return torch.full_like(losses, 1 / len(losses))
    rows = [unit + _non_negative(root, -(root @ unit)) for unit in units]  # v = e + z, z ≥ 0
    return torch.stack(rows).mean(0).to(gram)


WEIGHTINGS: dict[str, Weighting] = {
    "group_dro": group_dro_weights,
    "mgda": mgda_weights,
    "pcgrad": pcgrad_weights,
    "upgrad": upgrad_weights,
}
"""By the name that ``weighting=`` takes."""


def _root(gram: Tensor) -> tuple[Tensor, float]:
    """A with AᵀA = G / s, in float64 on the CPU, and the scale s, the largest entry of the diagonal.

    Raises:
        ValueError: if the Gram matrix is not finite.
    """
    matrix = gram.detach().double().cpu()
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            "The gradients of the environments are not finite, so that nothing can be said of their angles. Training "
            "has diverged: lower the learning rate, or clip gradients."
        )
    scale = float(matrix.diagonal().max())
    values, vectors = torch.linalg.eigh(matrix / (scale or 1.0))
    return values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T, scale


def _non_negative(system: Tensor, target: Tensor) -> Tensor:
    """Argmin ‖A z − b‖, z ≥ 0."""
    from scipy.optimize import nnls

    return torch.from_numpy(nnls(system.numpy(), target.numpy())[0])
