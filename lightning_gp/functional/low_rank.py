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
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.functional.chains import Chain
from lightning_gp.functional.gradient_steps import rate_of
from lightning_gp.functional.held_constant import constant, recording_constants
from lightning_gp.types import Examples, Parameters, Rates

PAIRS_PER_WEIGHT = 1 / 8
"""How many products of two examples' activations cost what one weight of one environment costs: measured."""

Layer: TypeAlias = Callable[[Tensor], Tensor]
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
    common = not any(isinstance(rate, Tensor) or rate != number for rate in rates.values())
    if common:  # one number for all: the gradients are multiplied by it where autograd starts
        rates = dict.fromkeys(rates, 1.0)
    sizes = steps, support[0].shape[1], query[0].shape[1]
    layers = [_adaptable(name, layer, parameters, rates, sizes) for name, layer in chain]
    moving = [layer for layer in layers if isinstance(layer, _Adaptable)]
    first = layers.index(moving[0])
    graph = not first_order or recording_constants()
    with torch.enable_grad():
        features = _forward(layers[:first], support[0])  # the same in each step
        for _ in range(steps):
            values = losses(_forward(layers[first:], features), support[1])
            start = torch.full_like(values, -number if common else -1.0)
            outputs = [layer.outputs for layer in moving]
            changes = torch.autograd.grad(values, outputs, start, create_graph=graph, materialize_grads=True)
            for layer, change in zip(moving, changes, strict=True):
                rows, change = _rows(layer.inputs), _rows(change)
                layer.move(*((constant(rows), constant(change)) if first_order else (rows, change)))
        return losses(_forward(layers, query[0]), query[1])


def _forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """X (E, K, *feature) through the layers."""
    for layer in layers:
        x = layer(x)
    return x


def _rows(x: Tensor) -> Tensor:
    """All rows of each environment, (E, ..., n) -> (E, N, n)."""
    return x if x.ndim == 3 else x.flatten(1, -2)


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
        return _without_weights(layer)
    if isinstance(layer, nn.LayerNorm):
        if rate is None and bias_rate is None:
            return lambda x: F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        return _Norm(weight, bias, rate, bias_rate, eps=layer.eps)
    if rate is None and bias_rate is None:
        return partial(F.linear, weight=weight, bias=bias)
    scalar = not any(isinstance(each, Tensor) and each.ndim for each in (rate, bias_rate))
    low = rate is not None and scalar and pays(weight.shape[1], weight.shape[0], *sizes)
    return (_LowRank if low else _Stacked)(weight, bias, rate, bias_rate)


def _without_weights(layer: nn.Module) -> Layer:
    if isinstance(layer, nn.ReLU):
        return _relu
    if isinstance(layer, nn.Flatten):
        start, end = (axis + 1 if axis >= 0 else axis for axis in (layer.start_dim, layer.end_dim))
        return lambda x: x.flatten(start, end)
    if getattr(layer, "inplace", False):
        return lambda x: layer(x.clone())  # autograd differentiates by what comes in
    return layer


def _relu(x: Tensor) -> Tensor:
    """ReLU as the linear function that it is where it is; torch's own adds zeros in its second derivative."""
    outputs: Tensor = torch.ops.aten.threshold_backward(x, x.detach(), 0)
    return outputs


class _Adaptable:
    """A layer in E environments, with parameters that are adapted.

    Attributes:
        inputs: what the weights met in the last call, (E, K, ..., in).
        outputs: what that gave, (E, K, ..., out).
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rate: float | Tensor | None,
        bias_rate: float | Tensor | None,
    ) -> None:
        self.weight, self.bias, self.rate, self.bias_rate = weight, bias, rate, bias_rate
        self.steps = 0

    def __call__(self, x: Tensor) -> Tensor:
        outputs = self.forward(x)
        self.outputs = outputs if outputs.requires_grad else outputs.requires_grad_()
        return self.outputs

    def forward(self, x: Tensor) -> Tensor:
        """The outputs; sets ``inputs``."""
        raise NotImplementedError

    def move(self, rows: Tensor, change: Tensor) -> None:
        """A step, from the inputs (E, N, in) of the last call and −α times the gradient by its outputs (E, N, out)."""
        raise NotImplementedError


class _Stacked(_Adaptable):
    """A linear layer with weights (E, in, out) or (E, out, in) and biases (E, 1, out) after the first step.

    The longer axis comes last: products with a matrix of one column take several times as long as with one of one row.
    """

    own: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = x
        if self.steps == 0:
            return F.linear(x, self.weight, self.bias)
        if self.rate is None:
            rows = _rows(F.linear(x, self.weight)) + self.bias
        else:
            weight = self.own if self.upright else self.own.mT
            rows = torch.bmm(_rows(x), weight) if self.bias is None else torch.baddbmm(self.bias, _rows(x), weight)
        return rows if x.ndim == 3 else rows.view(*x.shape[:-1], -1)

    @property
    def upright(self) -> bool:
        """Whether the weights are kept as (E, in, out)."""
        return self.weight.shape[0] >= self.weight.shape[1]

    def move(self, rows: Tensor, change: Tensor) -> None:
        left, right = (rows, change) if self.upright else (change, rows)
        if self.rate is not None:
            before = (
                self.own if self.steps else (self.weight.mT if self.upright else self.weight).expand(len(rows), -1, -1)
            )
            if isinstance(self.rate, Tensor):
                rate = self.rate.mT if self.upright and self.rate.ndim else self.rate
                self.own = before + rate * torch.bmm(left.mT, right)
            else:
                self.own = torch.baddbmm(before, left.mT, right, alpha=self.rate)
        if self.bias_rate is not None:
            self.bias = _plus(self.bias, change.sum(1, keepdim=True), self.bias_rate)
        self.steps += 1


class _LowRank(_Adaptable):
    """A linear layer with shared weights, beside which stand the inputs and changes of the steps so far."""

    history: Tensor
    changes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.steps == 0 or x is not self.inputs:  # the first layer meets the same inputs in each step
            self.inputs, self.shared = x, F.linear(x, self.weight, self.bias)
        if self.steps == 0:
            return self.shared
        if self.bias_rate is None:
            products = torch.bmm(_rows(x), self.history.mT)
        else:
            rate = self.bias_rate
            ones = rate.view(1, 1, 1) if isinstance(rate, Tensor) else x.new_full((1, 1, 1), rate)
            products = torch.baddbmm(ones, _rows(x), self.history.mT)
        rows = torch.baddbmm(_rows(self.shared), products, self.changes)
        return rows if x.ndim == 3 else rows.view(self.shared.shape)

    def move(self, rows: Tensor, change: Tensor) -> None:
        if self.steps > 0 and self.inputs is self.met:
            self.changes = self.changes + change
        else:
            rows = self.rate * rows if isinstance(self.rate, Tensor) or self.rate != 1 else rows
            self.history = rows if self.steps == 0 else torch.cat([self.history, rows], 1)
            self.changes = change if self.steps == 0 else torch.cat([self.changes, change], 1)
        self.met = self.inputs
        self.steps += 1


class _Norm(_Adaptable):
    """Layer normalisation over the last axis with weights and biases (E, 1, n) after the first step."""

    def __init__(self, *options: Any, eps: float) -> None:
        super().__init__(*options)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        rows = _rows(self.inputs) * self.weight
        return (rows if self.bias is None else rows + self.bias).view(x.shape)

    def move(self, rows: Tensor, change: Tensor) -> None:
        if self.rate is not None:
            self.weight = _plus(self.weight, (change * rows).sum(1, keepdim=True), self.rate)
        if self.bias_rate is not None:
            self.bias = _plus(self.bias, change.sum(1, keepdim=True), self.bias_rate)


def _plus(value: Tensor, change: Tensor, rate: float | Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return value + rate * change
    return torch.add(value, change, alpha=rate)
