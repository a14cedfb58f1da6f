"""The gradient of training, computed a second time without what the module itself does for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from lightning_gp.contracts import Adapts
from lightning_gp.environments import Environments, count_of
from lightning_gp.functional.held_constant import recorded
from lightning_gp.loops import InnerLoop
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.testing.promises import InapplicableError
from lightning_gp.types import Rates

STEPS = (1e-5, 1e-4, 1e-6)
"""Of finite differences; the first that agrees counts, as kinks and rounding each spoil one end."""
TOLERANCE = 1e-5


def loss_and_gradient(module: EnvironmentModule, batch: Sequence[Environments]) -> tuple[float, dict[str, Tensor]]:
    """The training loss and its gradient by every trained parameter, from the same random numbers each time."""
    module.zero_grad()
    torch.manual_seed(0)
    loss = module.training_loss(batch)
    loss.backward()
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return loss.item(), {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone() for name, value in trained.items()
    }


def by_finite_differences(
    module: EnvironmentModule, batch: Sequence[Environments], gradient: Mapping[str, Tensor]
) -> tuple[float, str]:
    """How far ⟨g, v⟩ is from (L(θ + h v) − L(θ − h v)) / 2h, v a random direction in each parameter.

    Args:
        module: in float64.
        batch: of environments.
        gradient: g, by parameter name.

    Returns:
        The largest error, relative to what ⟨g, v⟩ typically is, and the name of the parameter.
    """
    whole = torch.stack([each.norm() for each in gradient.values()]).norm()
    size = sum(each.numel() for each in gradient.values())
    generator = torch.Generator().manual_seed(0)
    worst = (0.0, "")
    for name, value in module.named_parameters():
        if name not in gradient:
            continue
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        direction /= direction.norm()
        expected = float((gradient[name] * direction).sum())
        typical = float(gradient[name].norm()) / value.numel() ** 0.5 + 1e-3 * float(whole) / size**0.5 + 1e-8
        error = float("inf")
        for step in STEPS:
            error = min(error, abs(_slope(module, batch, value, direction, step) - expected) / typical)
            if error <= TOLERANCE:
                break
        worst = max(worst, (error, name))
    return worst


def _slope(
    module: EnvironmentModule, batch: Sequence[Environments], value: nn.Parameter, direction: Tensor, step: float
) -> float:
    before = value.detach().clone()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            value.copy_(before + sign * step * direction)
        torch.manual_seed(0)
        losses.append(module.training_loss(batch).item())
    with torch.no_grad():
        value.copy_(before)
    return (losses[0] - losses[1]) / (2 * step)


def first_order_gradient(module: EnvironmentModule, batch: Sequence[Environments]) -> dict[str, Tensor]:
    """The mean over environments of ∇L_τ^te at θ_S, the inner loop written out as plain gradient descent.

    Raises:
        InapplicableError: if the objective is another one, or the inner loop no gradient descent.
    """
    assert isinstance(module, Adapts)
    loop = module.inner_loop()
    if loop.optimizer is not None:
        raise InapplicableError("the inner loop is that of an optimizer, of which no other computation is known")
    if set(module.environment_terms(module.network_parameters(), next(batch[0].chunks(1)))) != {"loss"}:
        raise InapplicableError("a first-order gradient of further terms, of which no other computation is known")
    total = sum(map(count_of, batch))
    gradients: dict[str, Tensor] = {}
    for environments in (one for each in batch for one in each.chunks(1)):
        (x, y), (xq, yq) = environments.support, environments.split("query")
        theta = {name: value.detach().clone() for name, value in module.network_parameters().items()}
        for step in range(loop.steps):
            theta = _descended(loop, step, theta, x[0], y[0])
        loss = loop.loss({name: value.requires_grad_() for name, value in theta.items()}, xq[0], yq[0])
        found = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        for name, own in zip(theta, found, strict=True):
            gradients[name] = gradients.get(name, torch.zeros_like(own)) + own / total
    return {f"network.{name}": value for name, value in gradients.items()}


def _descended(loop: InnerLoop, step: int, theta: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names = [name for name in theta if loop.adapted is None or name in loop.adapted]
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    own = torch.autograd.grad(loop.loss(leaves, x, y), [leaves[name] for name in names], materialize_grads=True)
    length = torch.stack([g.norm() for g in own]).norm() if loop.normalize else 1.0
    factor = loop.sign / length if length else 0.0
    rates = loop.rates[min(step, len(loop.rates) - 1)] if isinstance(loop.rates, tuple) else loop.rates
    moved = {name: leaves[name] - factor * _rate(rates, name) * g for name, g in zip(names, own, strict=True)}
    return {name: moved.get(name, value).detach() for name, value in leaves.items()}


def _rate(rates: Rates, name: str) -> float | Tensor:
    rate = rates[name] if isinstance(rates, Mapping) else rates
    return rate.detach() if isinstance(rate, Tensor) else rate


def holds_constant(module: EnvironmentModule, batch: Sequence[Environments]) -> bool:
    """Whether the update is no gradient, because a part of the objective is held constant in it."""
    with recorded() as recording, torch.enable_grad(), suppress(ValueError):
        module.environment_objectives(module.network_parameters(), batch[0])
    return recording.used or module.aggregates


def update_of(module: EnvironmentModule, batch: Sequence[Environments]) -> dict[str, Tensor]:
    """The gradient of the mean of ``environment_objectives``, which callbacks and maps differentiate.

    Raises:
        InapplicableError: if environments of unequal size are coupled.
    """
    if len(batch) > 1:
        raise InapplicableError("environments of unequal size are coupled, so that the objective of one means nothing")
    parameters = {name: value for name, value in module.network_parameters().items() if value.requires_grad}
    with torch.enable_grad():
        value = module.environment_objectives(module.network_parameters(), batch[0]).mean()
    found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    return {f"network.{name}": gradient for name, gradient in zip(parameters, found, strict=True)}
