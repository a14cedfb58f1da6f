"""How far a network's outputs are from linear in the adapted parameters along the inner loop.

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22], section 4.1: a model is linear in the inner loop if the
Jacobian ∇_θ f(x|θ_k) of its outputs f, before the softmax, does not change along the path.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.adaptation import Trajectory, difference, over_environments
from lightning_gp.functional.gradients import gradient_norm
from lightning_gp.functional.linearised import Linearisation, Predict
from lightning_gp.functional.linearity import ratio
from lightning_gp.types import Parameters

EXACT_ROWS = 64
"""Rows of a Jacobian up to which each has a backward pass of its own, unless told otherwise."""
PROBES = 32
"""Gaussian probes beyond that. The relative error of a squared norm is at most (2 / PROBES)^½, that of a ratio of two
norms by the same probes much smaller, and 0 where the Jacobian does not change."""


def jacobian_norm(
    predict: Predict, theta: Parameters, shared: Parameters, x: Tensor, probes: int | None = None, seed: int = 0
) -> Tensor:
    """‖J‖_F = (Σ_i Σ_c ‖∇_θ f_c(x_i|θ)‖²)^½ in each environment, the sum over examples and outputs.

    By vector-Jacobian products: of every row, or of Gaussian u, with E‖Jᵀu‖² = ‖J‖_F². The same seed draws the same u,
    whatever the device and for every environment; the global random state is left alone.

    Args:
        predict: the outputs (K, ...) of one environment.
        theta: the parameters to differentiate by, (E, *shape).
        shared: the others, (*shape).
        x: inputs (E, K, *feature).
        probes: how many u, of which the mean estimates the square without bias; 0 for every row; None for every row
            where there are at most ``EXACT_ROWS``, and ``PROBES`` beyond.
        seed: of the probes.

    Returns:
        (E,), detached.

    Raises:
        ValueError: if ``probes`` or ``seed`` is below 0, or the outputs do not depend on ``theta``.

    Example:
        >>> theta = {"w": torch.zeros(1, 2)}
        >>> jacobian_norm(lambda p, x: x @ p["w"], theta, {}, torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
        tensor([5.])
    """
    checks.optional_whole(0, probes=probes)
    checks.whole(0, seed=seed)
    with same_draws(x):
        linear = Linearisation(predict, theta, shared, x)
    shape, rows = linear.outputs.shape, linear.outputs[0].numel()
    if probes is None:
        probes = 0 if rows <= EXACT_ROWS else PROBES
    generator = torch.Generator().manual_seed(int(seed))
    norms = []
    for i in range(probes or rows):
        if probes:
            u = torch.randn(rows, generator=generator, dtype=torch.float64)
        else:
            u = torch.nn.functional.one_hot(torch.tensor(i), rows)
        cotangent = u.to(linear.outputs).reshape(shape[1:]).expand(shape)
        norms.append(gradient_norm(linear.transposed_product(cotangent)))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total / probes**0.5 if probes else total


def amplitude_consistency(
    predict: Predict, trajectory: Trajectory, x: Tensor, probes: int | None = None, seed: int = 0
) -> Tensor:
    """AC = (1/S) Σ_{k=1..S} ‖J(θ_k)‖_F / ‖J(θ_0)‖_F in each environment, J = ∇_θ f(x|θ) [L22, Eq. 4].

    J is the Jacobian of the network's outputs (the logits, not the loss) by the adapted parameters. All points of the
    path see the same probes, and the same draws of dropout.

    Args:
        predict: the outputs (K, ...) of one environment.
        trajectory: from ``adapt``, of S inner steps.
        x: support inputs (E, K, *feature).
        probes: see ``jacobian_norm``.
        seed: of the probes.

    Returns:
        (E,), detached; 1 where the outputs are linear in the parameters along the path. 0 / 0 counts as 1, what is not
        finite gives NaN.

    Raises:
        ValueError: if the path has no steps, or see ``jacobian_norm``.

    Example:
        >>> path = Trajectory(tuple({"w": torch.tensor([value])} for value in (1.0, 2.0, 3.0)), (), {})
        >>> amplitude_consistency(lambda p, x: x * p["w"] ** 2, path, torch.ones(1, 1))
        tensor([2.5000])
    """
    checks.whole(1, hint="take a Trajectory that adapt() made", steps=trajectory.steps)
    first, *later = (
        jacobian_norm(predict, theta, trajectory.shared, x, probes, seed) for theta in trajectory.parameters
    )
    return torch.stack([ratio(norm, first) for norm in later]).mean(0)


def linearisation_error(predict: Predict, trajectory: Trajectory, x: Tensor) -> Tensor:
    """‖f(θ_S) − f(θ_0) − J (θ_S − θ_0)‖ / ‖f(θ_S) − f(θ_0)‖ in each environment, J = ∇_θ f at θ_0.

    How much of what the inner loop changes the linearised network misses, by one Jacobian-vector product.

    Args:
        predict: the outputs (Q, ...) of one environment.
        trajectory: from ``adapt``.
        x: query inputs (E, Q, *feature).

    Returns:
        (E,), detached: 0 where the outputs are linear along the path, or do not change; 1 where J says that nothing
        changes; ∞ where nothing does and J says otherwise; NaN where an output is not finite.

    Raises:
        ValueError: if the path has no steps, or the outputs do not depend on the adapted parameters.
        RuntimeError: if an operation has no double backward.

    Example:
        >>> path = Trajectory(({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}), (), {})
        >>> linearisation_error(lambda p, x: x * p["w"] ** 2, path, torch.ones(1, 1))  # 8, of which 2 · 2 is foreseen
        tensor([0.5000])
    """
    checks.whole(1, hint="take a Trajectory that adapt() made", steps=trajectory.steps)
    start, end = trajectory.parameters[0], trajectory.parameters[-1]
    with same_draws(x):
        linear = Linearisation(predict, start, trajectory.shared, x)
    with same_draws(x), torch.no_grad():
        outputs: Tensor = over_environments(predict, end, trajectory.shared, x)
    displacement = {name: value.detach() for name, value in difference(end, start).items()}
    change = outputs - linear.outputs
    rest = change - linear.product(displacement)
    above, below = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (rest, change))
    return torch.where((above == 0) & (below == 0), 0.0, ratio(above, below))


def same_draws(x: Tensor) -> AbstractContextManager[None]:
    """Inside, the random state goes on from where it is, and afterwards is as before: dropout draws the same again.

    Args:
        x: a tensor on the device whose state it is.
    """
    fork: AbstractContextManager[None] = torch.random.fork_rng([x.device] if x.is_cuda else [])
    return fork
