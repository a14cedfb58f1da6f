"""Normalisation by operations that autograd differentiates any number of times.

The Hessian of a loss that holds a gradient takes third derivatives. That of torch's batch norm is not implemented, and
that of its layer norm is wrong in silence (by 3 to 15 % on small examples, torch 2.14). Every other layer of torch that
was tried has a right one (``tests/functional/test_third_derivatives.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def differentiates_norms(value: Tensor) -> bool:
    """Whether the graph of a loss holds the gradient of a normalisation that torch cannot differentiate twice more.

    Args:
        value: the loss.
    """
    return any(
        "NormBackwardBackward" in node.name() and ("Batch" in node.name() or "Layer" in node.name())
        for node in graph_of([value])
    )


def check_norms(value: Tensor) -> None:
    """Refuses what ``WrittenOutNorms`` could not replace.

    Args:
        value: a loss that was computed inside.

    Raises:
        RuntimeError: if its graph still holds the gradient of torch's own normalisation.
    """
    if differentiates_norms(value):
        raise RuntimeError(
            "the loss differentiates a batch or layer norm that it does not compute by torch.nn.functional, and the "
            "third derivative of torch's own is missing or wrong: use nn.BatchNorm, nn.LayerNorm or their functions."
        )


def graph_of(values: Iterable[Tensor]) -> Iterator[Node]:
    """Every node of the graphs of some tensors, once.

    Args:
        values: with or without a graph.
    """
    pending = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        following = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= following
        pending.extend(following)


class Replaced(TorchFunctionMode):
    """Inside, some functions of torch are others, which take the same arguments.

    Args:
        others: function of torch → what is called in its place.
    """

    def __init__(self, others: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the other one; see ``torch.overrides``."""
        return self.others.get(func, func)(*args, **(kwargs or {}))


def foreign(tensor: Tensor) -> bool:
    """Whether it is no plain CPU tensor of one of the two common types: on another device, inside vmap, a subclass."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.dtype in (torch.float32, torch.float64)
    return not plain or tensor.device.type != "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class WrittenOutNorms(Replaced):
    """Inside, batch, instance and layer norm are written out, but for those by running statistics.

    Example:
        >>> x = torch.randn(8, 3)
        >>> with WrittenOutNorms():
        ...     own = F.batch_norm(x, None, None, training=True)
        >>> torch.allclose(own, F.batch_norm(x, None, None, training=True), atol=1e-6)
        True
    """

    def __init__(self) -> None:
        super().__init__(
            {F.batch_norm: _batch_norm, F.instance_norm: _instance_norm, F.layer_norm: _layer_norm},
        )


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [0, *range(2, input.ndim)]
    return _normalised(input, axes, running_mean, running_var, weight, bias, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _normalised(input, list(range(2, input.ndim)), running_mean, running_var, weight, bias, momentum, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = list(range(-len(normalized_shape), 0))
    centered = input - input.mean(axes, keepdim=True)
    result = centered * (centered.square().mean(axes, keepdim=True) + eps).rsqrt()
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def _normalised(
    input: Tensor,
    axes: list[int],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    mean = input.mean(axes, keepdim=True)
    centered = input - mean
    variance = centered.square().mean(axes, keepdim=True)
    _follow(running_mean, mean, momentum)
    count = input.numel() // mean.numel()
    _follow(running_var, variance * (count / max(1, count - 1)), momentum)
    shape = [1, -1] + [1] * (input.ndim - 2)
    result = centered * (variance + eps).rsqrt()
    if weight is not None:
        result = result * weight.view(shape)
    return result if bias is None else result + bias.view(shape)


def _follow(running: Tensor | None, value: Tensor, momentum: float) -> None:
    """Running statistics, as torch's own function keeps them."""
    if running is not None:
        with torch.no_grad():
            running.lerp_(value.detach().reshape(-1, len(running)).mean(0).to(running.dtype), momentum)
