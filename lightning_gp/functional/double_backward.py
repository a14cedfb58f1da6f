"""What a loss must be for its gradient to be differentiated again, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_gp.functional.norms import graph_of

NO_DOUBLE_BACKWARD = ("is not implemented", "double backward", "differentiate twice", "once_differentiable")


def leaf(parameter: Tensor) -> Tensor:
    """The parameter itself where autograd can differentiate by it, else an alias; so a loss may reach it in any way.

    An inference tensor has to be copied to be differentiable.
    """
    if parameter.is_leaf and parameter.requires_grad and not parameter.is_inference():
        return parameter
    alias = parameter.clone() if parameter.is_inference() else parameter.detach()
    return alias.requires_grad_()


def differentiable_gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradient of the loss with its graph; None for a parameter that does not enter.

    Raises:
        ValueError: the loss depends on none of them, or the gradient of one is sparse.
        RuntimeError: an operation has no double backward.
    """
    gradients: tuple[Tensor | None, ...] = (None,)
    if value.requires_grad:
        # A `once_differentiable` function at the very end of the loss shows itself only if what arrives there carries a
        # graph; it would be left out of the Hessian in silence otherwise.
        one = torch.ones_like(value, requires_grad=True)
        try:
            gradients = torch.autograd.grad(value, leaves, one, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise explain(error) from error
    if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
        raise ValueError("the gradient is sparse, and has no derivative; build the embeddings with sparse=False.")
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "the loss does not depend on the parameters. It must be computed from the dict it is given, e.g. with "
            "torch.func.functional_call(module, parameters, x), without detach(), no_grad() or .item()."
        )
    return gradients


def check_parameters(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters that have no Hessian, or whose flat vector would lie on several devices.

    Raises:
        ValueError: none given, not floating-point, or on several devices.
    """
    if not parameters:
        raise ValueError("parameters is empty; pass a dict of name -> tensor, e.g. dict(module.named_parameters()).")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise ValueError(
                f"parameter {name!r} has dtype {parameter.dtype}; only floating-point ones have a Hessian."
            )
    devices = {str(parameter.device) for parameter in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"parameters lie on several devices, {sorted(devices)}; move them to one.")


def check_loss(value: object) -> None:
    """Refuse what is not a scalar.

    Raises:
        TypeError: not a tensor with one element.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss must return a scalar tensor, got {got}; take its mean or sum.")


def check_twice_differentiable(gradients: tuple[Tensor | None, ...]) -> None:
    """Refuse `once_differentiable` functions: autograd leaves them out of a second pass in silence."""
    for node in graph_of(gradient for gradient in gradients if gradient is not None):
        if node.name() in ("Error", "torch::autograd::Error"):
            raise explain(RuntimeError("a function marked once_differentiable"))


def explain(error: RuntimeError) -> RuntimeError:
    """The same error, with the way out when it says that something cannot be differentiated twice."""
    if not any(sign in str(error) for sign in NO_DOUBLE_BACKWARD):
        return error
    return RuntimeError(
        f"an operation inside the loss has no double backward ({error}). Attention: run the loss under "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH). torch.compile: use the uncompiled module. cuDNN recurrent "
        "layers: torch.backends.cudnn.flags(enabled=False). Own autograd.Function: write its backward with "
        "differentiable operations."
    )
