"""Penalties on gradients: of the loss by all parameters, and by a scalar on the logits (IRMv1).

Sources:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.
    [A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.types import Criterion


def gradient_penalty(loss: Callable[[dict[str, Tensor]], Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
    """‖∇L(θ)‖² over all ``parameters``, without any factor 1/2 [T21, Eq. 1-2].

    Args:
        loss: maps a parameter dict to a scalar.
        parameters: θ, tensors (*shape) of any shapes that require a gradient.

    Returns:
        A scalar; its gradient is 2 H g, by a double backward.

    Raises:
        ValueError: if no parameter requires a gradient, or the loss is no scalar that depends on them.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> gradient_penalty(lambda p: (p["w"] ** 2).sum(), {"w": w}).item()
        20.0
    """
    inputs = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if not inputs:
        raise ValueError(
            f"none of the parameters {sorted(parameters)} requires a gradient; call requires_grad_() first."
        )
    with torch.enable_grad():
        value = loss(dict(parameters))
        if value.ndim or not value.requires_grad:
            depends = "depends" if value.requires_grad else "does not depend"
            raise ValueError(
                f"The loss has shape {tuple(value.shape)} and {depends} on the parameters; it must be a scalar, made "
                "from the dict that it is given."
            )
        gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def scale_gradient(logits: Tensor, targets: Tensor, criterion: Criterion) -> Tensor:
    """∂L(w·z)/∂w at w = 1 for a scalar w on the logits z of one environment: mean_i ℓ'(z_i)·z_i.

    In closed form for the cross-entropy, the binary cross-entropy with logits and the squared error of torch with their
    default options; by autograd for any other ``criterion``.

    Args:
        logits: (K, ...), or (K, C, ...) for the cross-entropy.
        targets: (K, ...); class labels, or class probabilities of the logits' shape, for the cross-entropy.
        criterion: maps logits and targets to the scalar mean loss.

    Returns:
        A scalar, differentiable by the logits as often as the criterion is.

    Raises:
        ValueError: if the shapes of logits and targets do not fit the criterion (they would broadcast).

    Example:
        >>> scale_gradient(torch.tensor([2.0]), torch.tensor([1.0]), F.mse_loss)  # d/dw (2 w - 1)^2
        tensor(4.)
    """
    if _is(criterion, F.cross_entropy, nn.CrossEntropyLoss):
        return _cross_entropy_gradient(logits, targets)
    if _is(criterion, F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss):
        _check_same_shape(logits, targets)
        return ((logits.sigmoid() - targets) * logits).mean()
    if _is(criterion, F.mse_loss, nn.MSELoss):
        _check_same_shape(logits, targets)
        return (2 * (logits - targets) * logits).mean()
    with torch.enable_grad():
        scale = torch.ones((), dtype=logits.dtype, device=logits.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(criterion(scale * logits, targets), scale, create_graph=True)
    return gradient


def irmv1_penalty(logits: Tensor, targets: Tensor, criterion: Criterion, *, unbiased: bool = False) -> Tensor:
    """(∂L(w·z)/∂w)² at w = 1, the penalty of IRMv1 in one environment [A19, Eq. 4; T21, Eq. 11].

    On a mini-batch the square of a mean is biased upwards by the variance of that mean. ``unbiased=True`` multiplies
    the derivatives on the even and on the odd examples instead, whose expectation is the square of the expected
    derivative; a single value may be negative.

    Args:
        logits: (K, ...), or (K, C, ...) for the cross-entropy, of one environment.
        targets: (K, ...).
        criterion: maps logits and targets to the scalar mean loss.
        unbiased: the product of two halves of the batch in place of the square.

    Returns:
        A scalar; its gradient is exact.

    Raises:
        ValueError: if the shapes do not fit, or ``unbiased`` is asked of fewer than two examples.

    Example:
        >>> irmv1_penalty(torch.tensor([2.0]), torch.tensor([1.0]), F.mse_loss)
        tensor(16.)
    """
    first, second = (scale_gradient(z, y, criterion) for z, y in halves(logits, targets, unbiased))
    return first * second


def halves(logits: Tensor, targets: Tensor, unbiased: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Even and odd examples, or all of them twice if not ``unbiased``.

    Raises:
        ValueError: if there are fewer than two examples to cut in halves.
    """
    if not unbiased:
        return (logits, targets), (logits, targets)
    if logits.shape[0] < 2:
        raise ValueError(
            f"The unbiased estimator needs at least 2 examples in each environment, got {logits.shape[0]}."
        )
    return (logits[0::2], targets[0::2]), (logits[1::2], targets[1::2])


def _is(criterion: Any, function: Criterion, module: type[nn.Module]) -> bool:
    """Whether ``criterion`` is that loss of torch with its default options."""
    if criterion is function:
        return True
    if type(criterion) is not module:
        return False
    default = type(criterion)()
    names = ("reduction", "ignore_index", "label_smoothing", "weight", "pos_weight")
    return all(_equal(getattr(criterion, name, None), getattr(default, name, None)) for name in names)


def _equal(value: Any, default: Any) -> bool:
    return value is None if default is None else value == default


def _cross_entropy_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    classes = logits.shape[1] if logits.ndim > 1 else 0
    expected = (logits.softmax(1) * logits).sum(1) if classes else logits
    if targets.is_floating_point():
        _check_same_shape(logits, targets)
        return (targets.sum(1) * expected - (targets * logits).sum(1)).mean()
    if not classes or targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"Cross-entropy needs logits (K, C) and class labels (K,), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}."
        )
    counted = targets != -100  # torch's default `ignore_index`
    chosen = logits.gather(1, torch.where(counted, targets, 0).unsqueeze(1)).squeeze(1)
    return torch.where(counted, expected - chosen, 0).sum() / counted.sum()


def _check_same_shape(logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(
            f"Logits have shape {tuple(logits.shape)} but targets {tuple(targets.shape)}; they must be equal, or they "
            "would be broadcast against each other."
        )
