"""What invariance asks of the gradients of environments: equal, of equal spread, of equal sign.

Sources:
    [P21] G. Parascandolo et al. (2021), Learning explanations that are hard to vary.
    [R22] A. Ramé, C. Dancette, M. Cord (2022), Fishr: invariant gradient variances for out-of-distribution
    generalization.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lightning_gp.functional.adaptation import over_environments
from lightning_gp.types import Loss, Parameters


def differentiable_gradients(
    loss: Loss, parameters: Parameters, examples: Sequence[Tensor]
) -> tuple[Tensor, Parameters]:
    """L_τ(θ), (E,), and ∇L_τ(θ), (E, *shape), of each environment, with their graph.

    Args:
        loss: the scalar loss of one environment.
        parameters: θ, tensors (*shape).
        examples: x (E, K, *feature), y (E, K, *target).

    Returns:
        Losses and a stack of gradients, zero where the loss does not depend on a parameter.

    Example:
        >>> def loss(p, x, y):
        ...     return (p["w"] * x - y).square().mean()
        >>> x = torch.ones(2, 3)
        >>> examples = x, torch.stack([0 * x[0], 2 * x[1]])
        >>> _, gradients = differentiable_gradients(loss, {"w": torch.tensor(1.0)}, examples)
        >>> gradients["w"].tolist()
        [2.0, -2.0]
    """
    count = examples[0].shape[0]
    with torch.enable_grad():
        theta = {name: value.expand(count, *value.shape) for name, value in parameters.items()}
        for value in theta.values():
            if not value.requires_grad:
                value.requires_grad_()
        losses: Tensor = over_environments(loss, theta, {}, *examples)
        # Environments do not interact, so the gradient of the sum is every environment's own gradient.
        gradients = torch.autograd.grad(losses.sum(), list(theta.values()), create_graph=True, materialize_grads=True)
    return losses, dict(zip(theta, gradients, strict=True))


def example_gradients(
    loss: Loss, parameters: Parameters, names: Collection[str], examples: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The loss of each example of one environment, (K,), and its gradient by some parameters, (K, P), with their graph.

    Args:
        loss: the scalar mean loss of some examples.
        parameters: θ, tensors (*shape).
        names: of the parameters to differentiate by.
        examples: x (K, *feature), y (K, *target).

    Example:
        >>> def loss(p, x, y):
        ...     return (p["w"] * x - y).square().mean()
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> example_gradients(loss, {"w": torch.tensor(1.0)}, ["w"], (x, 0 * x))[1].tolist()
        [[2.0], [8.0]]
    """
    count = examples[0].shape[0]
    shared = {name: value for name, value in parameters.items() if name not in names}
    with torch.enable_grad():
        own = {name: parameters[name].expand(count, *parameters[name].shape) for name in names}
        for value in own.values():
            if not value.requires_grad:
                value.requires_grad_()
        losses: Tensor = over_environments(loss, own, shared, *(each.unsqueeze(1) for each in examples))
        gradients = torch.autograd.grad(losses.sum(), list(own.values()), create_graph=True, materialize_grads=True)
    return losses, torch.cat([gradient.reshape(count, -1) for gradient in gradients], 1)


def agreeing(gradients: Tensor, agreement: float) -> Tensor:
    """Where at least a share of the environments have gradients of one sign, a mask (*shape) [P21].

    Args:
        gradients: (E, *shape); zero agrees with neither sign.
        agreement: the share, in (0, 1]; 1 for all environments. [P21]'s threshold τ is 2·agreement − 1.

    Example:
        >>> agreeing(torch.tensor([[1.0, 1.0], [2.0, -1.0]]), 1.0)
        tensor([ True, False])
    """
    signs = gradients.sign()
    same = torch.maximum((signs > 0).sum(0), (signs < 0).sum(0))
    return same >= agreement * len(gradients) * (1 - 1e-9)  # rounding of 0.7 · 10 must not ask for 8
