"""How straight the inner loop's path is, and the loss that makes it straighter.

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22] (later published as SHOT, NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp.functional.adaptation import Trajectory, difference, over_environments
from lightning_gp.functional.gradient_steps import norm_per_environment
from lightning_gp.functional.gradients import gradient_norm
from lightning_gp.functional.held_constant import constant
from lightning_gp.types import Parameters

Detach = Literal["none", "target", "approximation"]
Divergence = Literal["kl", "reverse_kl", "gaussian"]
DETACH: tuple[str, ...] = get_args(Detach)
DIVERGENCES: tuple[str, ...] = get_args(Divergence)


def phase_consistency(trajectory: Trajectory) -> Tensor:
    """PC = Σ_k ‖θ_{k+1} − θ_k‖ / ‖θ_S − θ_0‖ in each environment [L22, Eq. 3].

    Args:
        trajectory: from ``adapt``, of S inner steps.

    Returns:
        (E,), at least 1, and 1 when the path is straight; so always 1 for S = 1. A path of length 0 gives 1 (its
        gradient never changes), one that comes back to its start ∞, one that is not finite NaN.

    Example:
        >>> corner = [torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])]
        >>> phase_consistency(Trajectory(tuple({"w": theta} for theta in corner), (), {}))
        tensor([1.4000])
    """
    length = trajectory.path_length
    distance = norm_per_environment(difference(trajectory.parameters[-1], trajectory.parameters[0]))
    # The triangle inequality holds only up to rounding in floating point.
    return ratio(length, distance).clamp(min=1)


def loss_gradient_ratio(trajectory: Trajectory) -> Tensor:
    """(1/S) Σ_{k=1..S} ‖g(θ_k)‖ / ‖g(θ_0)‖ in each environment, g the gradient of the inner loss.

    It says how much of the loss is left to learn, and falls as the support set is fitted, however linear the network
    is: amplitude consistency is the same of the outputs' Jacobian.

    Args:
        trajectory: from ``adapt(..., final_gradient=True)``: the last point's gradient belongs to the mean.

    Returns:
        (E,), 1 when the gradient's norm does not change. Gradients that are all 0 give 1; only the first being 0, ∞.

    Raises:
        ValueError: if the trajectory lacks the gradient at θ_S.

    Example:
        >>> path, gradients = [{"w": torch.zeros(1, 1)}] * 3, [torch.tensor([[norm]]) for norm in (2.0, 1.0, 3.0)]
        >>> loss_gradient_ratio(Trajectory(tuple(path), tuple({"w": g} for g in gradients), {}))
        tensor([1.])
    """
    steps = trajectory.steps
    if len(trajectory.gradients) != steps + 1:
        raise ValueError(
            f"The trajectory has {len(trajectory.gradients)} gradients for {steps} inner steps; the ratio "
            f"needs {steps + 1}, that at the last point too. Build it with adapt(..., final_gradient=True)."
        )
    first, *later = (gradient_norm(gradient) for gradient in trajectory.gradients)
    return torch.stack([ratio(norm, first) for norm in later]).mean(0)


def approximation(trajectory: Trajectory, length: Tensor | None = None) -> Parameters:
    """θ̂ = θ_0 − δ g_0, δ = Σ_k ‖θ_{k+1} − θ_k‖ / ‖g_0‖: one step as long as the whole path [L22, Eq. 7, 8].

    Computed as θ_0 + (Σ_k ‖θ_{k+1} − θ_k‖ / ‖θ_1 − θ_0‖) (θ_1 − θ_0), which is the same for one inner rate α, where
    θ_1 − θ_0 = −α g_0. With a rate per parameter, or another inner optimizer, it is the one that a straight path takes.

    Args:
        trajectory: from ``adapt``; with ``create_graph=True`` the result is differentiable, δ and the length included.
        length: ``trajectory.path_length``, (E,), where it is known already.

    Returns:
        Tensors (E, *shape), the adapted parameters only; θ_0 where the first step is 0, as it is where g_0 = 0.
    """
    if trajectory.steps == 1:
        return trajectory.parameters[1]
    total = trajectory.path_length if length is None else length
    return stretched(trajectory.parameters[0], trajectory.parameters[1], total)


def stretched(start: Parameters, end: Parameters, length: Tensor) -> Parameters:
    """The point start + ℓ (end − start)/‖end − start‖ in each environment; start where both are equal.

    Args:
        start: tensors (E, *shape).
        end: likewise.
        length: ℓ, (E,).

    Returns:
        Tensors (E, *shape).

    Example:
        >>> start, end = {"w": torch.zeros(1, 2)}, {"w": torch.tensor([[0.0, 2.0]])}
        >>> stretched(start, end, torch.tensor([3.0]))["w"]
        tensor([[0., 3.]])
    """
    step = difference(end, start)
    norm = norm_per_environment(step)
    moving = norm != 0
    # Both branches of `where` are differentiated, hence the 1 in the denominator of the one that is not taken.
    factor = torch.where(moving, length / torch.where(moving, norm, 1.0), 0.0)
    return {
        name: torch.addcmul(value, factor.reshape(-1, *[1] * (value.ndim - 1)), step[name])
        for name, value in start.items()
    }


def phase_loss(
    predict: Callable[[Parameters, Tensor], Tensor],
    trajectory: Trajectory,
    x: Tensor,
    detach: Detach = "none",
    divergence: Divergence = "kl",
) -> Tensor:
    """KL( s(f(x|θ_S)) ‖ s(f(x|θ̂)) ), the mean over examples, in each environment [L22, Eq. 7].

    Args:
        predict: ``predict(parameters, x)``: the logits (Q, C, ...) of one environment.
        trajectory: from ``adapt`` on the support set.
        x: query inputs (E, Q, *feature).
        detach: which side is a constant: ``"none"`` [L22], the ``"target"`` s(f(x|θ_S)), so that the one-step model
            learns, or the ``"approximation"`` s(f(x|θ̂)), so that only the path learns.
        divergence: see ``output_divergence``.

    Returns:
        (E,), at least 0; 0 where the path is straight.

    Raises:
        ValueError: if an argument is unknown, or ``predict`` gives fewer than two classes to a KL of classes.
    """
    adapted: Tensor = over_environments(predict, trajectory.parameters[-1], trajectory.shared, x)
    one_step: Tensor = over_environments(predict, approximation(trajectory), trajectory.shared, x)
    return output_divergence(adapted, one_step, detach, divergence)


def output_divergence(
    adapted: Tensor, one_step: Tensor, detach: Detach = "none", divergence: Divergence = "kl"
) -> Tensor:
    """How far the outputs at θ̂ are from those at θ_S, the mean over examples, in each environment.

    | ``divergence`` | definition | for |
    |---|---|---|
    | ``"kl"`` | KL( s(f(x|θ_S)) ‖ s(f(x|θ̂)) ), s the softmax | classification [L22, Eq. 7] |
    | ``"reverse_kl"`` | KL( s(f(x|θ̂)) ‖ s(f(x|θ_S)) ) | classification |
    | ``"gaussian"`` | ½ ‖f(x|θ_S) − f(x|θ̂)‖² | regression: the KL of Gaussians of variance 1 |

    Args:
        adapted: f(x|θ_S), (E, Q, C, ...); further axes count as examples, except for ``"gaussian"``.
        one_step: f(x|θ̂), of the same shape.
        detach: the side that is held constant, see ``phase_loss``.
        divergence: see above.

    Returns:
        (E,), at least 0.

    Raises:
        ValueError: if an argument is unknown, or there are fewer than two classes.

    Example:
        >>> output_divergence(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 4.0]]]), divergence="gaussian")
        tensor([12.5000])
    """
    check_choice("detach", detach, DETACH)
    check_choice("divergence", divergence, DIVERGENCES)
    adapted = constant(adapted) if detach == "target" else adapted
    one_step = constant(one_step) if detach == "approximation" else one_step
    if divergence == "gaussian":
        return 0.5 * (adapted - one_step).square().flatten(2).sum(2).mean(1)
    if adapted.ndim < 3 or adapted.shape[2] < 2:
        raise ValueError(
            f"The phase loss compares class probabilities: logits must have shape (E, Q, classes, ...) with at least "
            f"2 classes, got {tuple(adapted.shape)}. For regression choose divergence='gaussian'."
        )
    target, approximate = (adapted, one_step) if divergence == "kl" else (one_step, adapted)
    p, q = F.log_softmax(target, dim=2), F.log_softmax(approximate, dim=2)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(2).flatten(1).mean(1)


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Refuses what is not among the allowed words.

    Raises:
        ValueError: naming them.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, allowed))}.")


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, with 0 / 0 = 1; NaN where either is not finite.

    Args:
        above: not negative.
        below: of the same shape.
    """
    found = torch.where((above == 0) & (below == 0), 1.0, above / below)
    return torch.where(above.isfinite() & below.isfinite(), found, torch.nan)
