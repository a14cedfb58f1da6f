"""How straight and how even the inner loop's path is, and the loss that makes it straighter.

Source: "LIL: linearity in the inner loop", 2022 [L22] (later published as SHOT, NeurIPS 2023). A model is linear in the
inner loop if its gradient does not change along the path; then both consistencies are 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp.functional.adaptation import (
    Parameters,
    Trajectory,
    difference,
    norm_per_environment,
    over_environments,
)
from lightning_gp.functional.gradients import gradient_norm

Detach = Literal["none", "target", "approximation"]


def phase_consistency(trajectory: Trajectory) -> Tensor:
    """PC = Σ_k ‖θ_{k+1} − θ_k‖ / ‖θ_S − θ_0‖ in each environment [L22, Eq. 3].

    Args:
        trajectory: from ``adapt``, of S inner steps.

    Returns:
        (E,), at least 1, and 1 when the path is straight; so always 1 for S = 1. A path of length 0 gives 1 (its
        gradient never changes), one that comes back to its start ∞.

    Example:
        >>> corner = [torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])]
        >>> phase_consistency(Trajectory(tuple({"w": theta} for theta in corner), (), {}))
        tensor([1.4000])
    """
    length = trajectory.path_length
    distance = norm_per_environment(difference(trajectory.parameters[-1], trajectory.parameters[0]))
    # The triangle inequality holds only up to rounding in floating point.
    return _ratio(length, distance).clamp(min=1)


def amplitude_consistency(trajectory: Trajectory) -> Tensor:
    """AC = (1/S) Σ_{k=1..S} ‖g(θ_k)‖ / ‖g(θ_0)‖ in each environment, g the inner loss's gradient [L22, Eq. 4].

    Args:
        trajectory: from ``adapt(..., final_gradient=True)``: the last point's gradient belongs to the mean.

    Returns:
        (E,), 1 when the gradient's norm does not change. Gradients that are all 0 give 1; only the first being 0, ∞.

    Raises:
        ValueError: if the trajectory lacks the gradient at θ_S.

    Example:
        >>> path, gradients = [{"w": torch.zeros(1, 1)}] * 3, [torch.tensor([[norm]]) for norm in (2.0, 1.0, 3.0)]
        >>> amplitude_consistency(Trajectory(tuple(path), tuple({"w": g} for g in gradients), {}))
        tensor([1.])
    """
    steps = trajectory.steps
    if len(trajectory.gradients) != steps + 1:
        raise ValueError(
            f"The trajectory has {len(trajectory.gradients)} gradients for {steps} inner steps; amplitude consistency "
            f"needs {steps + 1}, that at the last point too. Build it with adapt(..., final_gradient=True)."
        )
    first, *later = (gradient_norm(gradient) for gradient in trajectory.gradients)
    return torch.stack([_ratio(norm, first) for norm in later]).mean(0)


def approximation(trajectory: Trajectory) -> Parameters:
    """θ̂ = θ_0 − δ g_0, δ = Σ_k ‖θ_{k+1} − θ_k‖ / ‖g_0‖: one step as long as the whole path [L22, Eq. 7, 8].

    Args:
        trajectory: from ``adapt``; with ``create_graph=True`` the result is differentiable.

    Returns:
        Tensors (E, *shape), the adapted parameters only; θ_0 where g_0 = 0.
    """
    start, gradient = trajectory.parameters[0], trajectory.gradients[0]
    norm = norm_per_environment(gradient)
    moving = norm > 0
    # Both branches of `where` are differentiated, hence the 1 in the denominator of the one that is not taken.
    delta = torch.where(moving, trajectory.path_length / torch.where(moving, norm, 1.0), 0.0)
    return {name: value - delta.reshape(-1, *[1] * (value.ndim - 1)) * gradient[name] for name, value in start.items()}


def phase_loss(
    predict: Callable[[Parameters, Tensor], Tensor], trajectory: Trajectory, x: Tensor, detach: Detach = "none"
) -> Tensor:
    """KL( s(f(x|θ_S)) ‖ s(f(x|θ̂)) ), the mean over examples, in each environment [L22, Eq. 7].

    Args:
        predict: ``predict(parameters, x)``: the logits (Q, C, ...) of one environment.
        trajectory: from ``adapt`` on the support set.
        x: query inputs (E, Q, *feature).
        detach: which side is a constant: ``"none"`` [L22], the ``"target"`` s(f(x|θ_S)), so that the one-step model
            learns, or the ``"approximation"``.

    Returns:
        (E,), at least 0; 0 where the path is straight.

    Raises:
        ValueError: if ``detach`` is unknown or ``predict`` gives fewer than two classes.
    """
    if detach not in ("none", "target", "approximation"):
        raise ValueError(f"detach={detach!r} is unknown; use 'none', 'target' or 'approximation'.")
    adapted = _log_probabilities(predict, trajectory.parameters[-1], trajectory.shared, x, detach == "target")
    one_step = _log_probabilities(predict, approximation(trajectory), trajectory.shared, x, detach == "approximation")
    divergence = F.kl_div(one_step, adapted, reduction="none", log_target=True).sum(2)
    return divergence.flatten(1).mean(1)


def _log_probabilities(
    predict: Callable[[Parameters, Tensor], Tensor], stacked: Parameters, shared: Parameters, x: Tensor, constant: bool
) -> Tensor:
    logits: Tensor = over_environments(predict, stacked, shared, x)
    if logits.ndim < 3 or logits.shape[2] < 2:
        raise ValueError(
            f"The phase loss compares class probabilities: logits must have shape (E, Q, classes, ...) with at least "
            f"2 classes, got {tuple(logits.shape)}."
        )
    return F.log_softmax(logits.detach() if constant else logits, dim=2)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, with 0 / 0 = 1."""
    return torch.where((above == 0) & (below == 0), 1.0, above / below)
