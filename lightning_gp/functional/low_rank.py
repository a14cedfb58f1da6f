"""MAML on chains of known layers without E copies of the weights: environments share θ_0, and a step adds low rank.

After inner steps j with inputs a_j (K, in) of a linear layer and gradients δ_j (K, out) by its outputs, one environment
computes

    W_τ x + b_τ  =  W x + b − α Σ_j δ_jᵀ (a_j x + 1),

so that one product with the shared weights serves all examples of all environments, and what is kept of an environment
are activations. Where S·K is large and the layer narrow, the E weights W − α Σ_j δ_jᵀ a_j cost less, and are formed
(``pays``). Either way autograd gives the δ_j with their graph, so the result can be differentiated as often as
``adapt``'s; nothing is mapped by ``vmap``, and the first step is one forward pass of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.functional.chains import Chain
from lightning_gp.functional.gradient_steps import rate_of
from lightning_gp.functional.held_constant import constant, recording_constants
from lightning_gp.functional.low_rank_layers import Adaptable, Layer, LowRank, Norm, Stacked, rows_of, without_weights
from lightning_gp.types import Examples, Parameters, Rates

PAIRS_PER_WEIGHT = 1 / 8
"""How many products of two examples' activations cost what one weight of one environment costs: measured."""

Losses: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs (E, K, ...) and targets (E, K, ...) -> losses (E,)."""


def pays(ins: int, outs: int, steps: int, support: int, query: int) -> bool:
    """Whether the low rank costs less than the weights: K (3/2 K (S − 1) + Q) < in · out · ``PAIRS_PER_WEIGHT``.

    On the left are the pairs of examples whose activations are multiplied, in a step; those within the support set
    count three times, as their products are differentiated twice. On the right are the weights of one environment,
    which are formed, read and differentiated.

    Args:
        ins: features that a linear layer takes.
        outs: features that it gives.
        steps: S.
        support: K.
        query: Q.

    Example:
        >>> pays(256, 256, steps=1, support=10, query=10), pays(40, 40, steps=5, support=10, query=10)
        (True, False)
    """
    return support * (1.5 * support * (steps - 1) + query) < PAIRS_PER_WEIGHT * ins * outs


def adapted_losses(
    chain: Chain,
    parameters: Parameters,
    support: Examples,
    query: Examples,
    losses: Losses,
    lr: Rates,
    steps: int = 1,
    *,
    first_order: bool = False,
    adapted: Collection[str] | None = None,
) -> Tensor:
    """L_τ^te(θ_S) after θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) of each environment, (E,); see the file.

    Args:
        chain: of the network.
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        query: x (E, Q, *feature), y (E, Q, *target).
        losses: of each environment, from the outputs.
        lr: α, as in ``adapt``.
        steps: S ≥ 1.
        first_order: drop the Jacobian of the inner steps (FOMAML).
        adapted: names that the inner loop updates; None for all.

    Example:
        >>> from lightning_gp.functional.chains import chain_of
        >>> chain = chain_of(nn.Linear(1, 1, bias=False))
        >>> x, squares = torch.ones(2, 3, 1), lambda outputs, y: (outputs - y).square().mean((1, 2))
        >>> adapted_losses(chain, {"weight": torch.zeros(1, 1)}, (x, 2 * x), (x, 2 * x), squares, lr=0.25).tolist()
        [1.0, 1.0]
    """
    rates = {name: rate_of(lr, name) for name in (parameters if adapted is None else adapted)}
    number = next(iter(rates.values()))
    common = None if any(isinstance(rate, Tensor) or rate != number for rate in rates.values()) else number
    if common is not None:  # one number for all: the gradients are multiplied by it where autograd starts
        rates = dict.fromkeys(rates, 1.0)
    sizes = steps, support[0].shape[1], query[0].shape[1]
    layers = [_adaptable(name, layer, parameters, rates, sizes) for name, layer in chain]
    moving = [layer for layer in layers if isinstance(layer, Adaptable)]
    first = layers.index(moving[0])
    graph = not first_order or recording_constants()
    with torch.enable_grad():
        features = _forward(layers[:first], support[0])  # the same in each step
        for _ in range(steps):
            values = losses(_forward(layers[first:], features), support[1])
            start = torch.full_like(values, -1.0 if common is None else -float(common))
            outputs = [layer.outputs for layer in moving]
            changes = torch.autograd.grad(values, outputs, start, create_graph=graph, materialize_grads=True)
            for layer, change in zip(moving, changes, strict=True):
                rows, change = rows_of(layer.inputs), rows_of(change)
                layer.move(*((constant(rows), constant(change)) if first_order else (rows, change)))
        return losses(_forward(layers, query[0]), query[1])


def _forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """X (E, K, *feature) through the layers."""
    for layer in layers:
        x = layer(x)
    return x


def _adaptable(
    name: str,
    layer: nn.Module,
    parameters: Parameters,
    rates: Mapping[str, float | Tensor],
    sizes: tuple[int, int, int],
) -> Layer:
    names = [f"{name}.{each}" if name else each for each in ("weight", "bias")]
    weight, bias = (parameters.get(each) for each in names)
    rate, bias_rate = (rates.get(each) for each in names)
    if weight is None:
        return without_weights(layer)
    if isinstance(layer, nn.LayerNorm):
        if rate is None and bias_rate is None:
            return lambda x: F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        return Norm(weight, bias, rate, bias_rate, eps=layer.eps)
    if rate is None and bias_rate is None:
        return partial(F.linear, weight=weight, bias=bias)
    scalar = not any(isinstance(each, Tensor) and each.ndim for each in (rate, bias_rate))
    low = rate is not None and scalar and pays(weight.shape[1], weight.shape[0], *sizes)
    return (LowRank if low else Stacked)(weight, bias, rate, bias_rate)
