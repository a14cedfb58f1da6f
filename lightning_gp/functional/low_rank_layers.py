"""Layers in many environments at once, of which each moves by its own inner steps: see ``functional.low_rank``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer: TypeAlias = Callable[[Tensor], Tensor]


def rows_of(x: Tensor) -> Tensor:
    """All rows of each environment, (E, ..., n) -> (E, N, n)."""
    return x if x.ndim == 3 else x.flatten(1, -2)


def without_weights(layer: nn.Module) -> Layer:
    """A layer without parameters as a function of the inputs of all environments, (E, K, *feature).

    Args:
        layer: of a chain.
    """
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


class Adaptable(ABC):
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
        """The outputs, which are kept to be differentiated by."""
        outputs = self.forward(x)
        self.outputs = outputs if outputs.requires_grad else outputs.requires_grad_()
        return self.outputs

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The outputs; sets ``inputs``."""

    @abstractmethod
    def move(self, rows: Tensor, change: Tensor) -> None:
        """A step, from the inputs (E, N, in) of the last call and −α times the gradient by its outputs (E, N, out)."""


class Stacked(Adaptable):
    """A linear layer with weights (E, in, out) or (E, out, in) and biases (E, 1, out) after the first step.

    The longer axis comes last: products with a matrix of one column take several times as long as with one of one row.
    """

    own: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """As ``Adaptable.forward``."""
        self.inputs = x
        if self.steps == 0:
            return F.linear(x, self.weight, self.bias)
        if self.rate is None:
            assert self.bias is not None
            rows = rows_of(F.linear(x, self.weight)) + self.bias
        else:
            weight = self.own if self.upright else self.own.mT
            rows = torch.bmm(rows_of(x), weight) if self.bias is None else torch.baddbmm(self.bias, rows_of(x), weight)
        return rows if x.ndim == 3 else rows.view(*x.shape[:-1], -1)

    @property
    def upright(self) -> bool:
        """Whether the weights are kept as (E, in, out)."""
        return self.weight.shape[0] >= self.weight.shape[1]

    def move(self, rows: Tensor, change: Tensor) -> None:
        """As ``Adaptable.move``."""
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
        if self.bias is not None and self.bias_rate is not None:
            self.bias = _plus(self.bias, change.sum(1, keepdim=True), self.bias_rate)
        self.steps += 1


class LowRank(Adaptable):
    """A linear layer with shared weights, beside which stand the inputs and changes of the steps so far."""

    history: Tensor
    changes: Tensor
    met: Tensor
    rate: float | Tensor

    def forward(self, x: Tensor) -> Tensor:
        """As ``Adaptable.forward``."""
        if self.steps == 0 or x is not self.inputs:  # the first layer meets the same inputs in each step
            self.inputs, self.shared = x, F.linear(x, self.weight, self.bias)
        if self.steps == 0:
            return self.shared
        if self.bias_rate is None:
            products = torch.bmm(rows_of(x), self.history.mT)
        else:
            rate = self.bias_rate
            ones = rate.view(1, 1, 1) if isinstance(rate, Tensor) else x.new_full((1, 1, 1), rate)
            products = torch.baddbmm(ones, rows_of(x), self.history.mT)
        rows = torch.baddbmm(rows_of(self.shared), products, self.changes)
        return rows if x.ndim == 3 else rows.view(self.shared.shape)

    def move(self, rows: Tensor, change: Tensor) -> None:
        """As ``Adaptable.move``."""
        if self.steps > 0 and self.inputs is self.met:
            self.changes = self.changes + change
        else:
            rows = self.rate * rows if isinstance(self.rate, Tensor) or self.rate != 1 else rows
            self.history = rows if self.steps == 0 else torch.cat([self.history, rows], 1)
            self.changes = change if self.steps == 0 else torch.cat([self.changes, change], 1)
        self.met = self.inputs
        self.steps += 1


class Norm(Adaptable):
    """Layer normalisation over the last axis with weights and biases (E, 1, n) after the first step."""

    def __init__(self, *options: Any, eps: float) -> None:
        super().__init__(*options)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """As ``Adaptable.forward``."""
        self.inputs = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        rows = rows_of(self.inputs) * self.weight
        return (rows if self.bias is None else rows + self.bias).view(x.shape)

    def move(self, rows: Tensor, change: Tensor) -> None:
        """As ``Adaptable.move``."""
        if self.rate is not None:
            self.weight = _plus(self.weight, (change * rows).sum(1, keepdim=True), self.rate)
        if self.bias is not None and self.bias_rate is not None:
            self.bias = _plus(self.bias, change.sum(1, keepdim=True), self.bias_rate)


def _plus(value: Tensor, change: Tensor, rate: float | Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return value + rate * change
    return torch.add(value, change, alpha=rate)
