"""The IRMv1 gradient on full-batch colored MNIST, written out: ten restarts are hours of matrix products otherwise.

It equals that of the ``IRMv1`` module (a test says so, in float64) and saves what a general implementation cannot:

- a coloured image fills one of its channels; the other's half of the first layer is never multiplied;
- pixels that are black in all images are left out, here and in the weights' gradient;
- activations live in buffers that are allocated once, and rows go through in blocks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.types import Examples

BLOCK_ROWS = 512


class Block(NamedTuple):
    """Rows of one environment with one colour."""

    rows: slice
    channel: int
    pixels: Tensor


class FullBatchGradient:
    """∇θ of [ mean_τ (R_τ + λ (∂R_τ/∂w)²) + l2·‖θ‖² ] / divisor for ``ColoredMNISTMLP`` with two hidden layers.

    Args:
        environments: x (K, channels, height, width) and y (K, 1) of each; in every image one channel is not black.
        hidden: width of the network.
        l2: weight of ‖θ‖².

    Raises:
        ValueError: if an image has more than one channel that is not black.
    """

    def __init__(self, environments: Sequence[Examples], hidden: int, l2: float) -> None:
        self.l2 = l2
        self.channels = environments[0][0].shape[1]
        rows, blocks, targets, start = [], [], [], 0
        for x, y in environments:
            brightness = x.flatten(2).sum(2)
            if ((brightness > 0).sum(1) > 1).any():
                raise ValueError("An image uses more than one channel; train with the IRMv1 module instead.")
            colours = brightness.argmax(1)
            order = colours.argsort(stable=True)
            images = x[torch.arange(len(y), device=x.device), colours].flatten(1)[order]
            blocks.append((images, colours[order]))
            targets.append(y[order, 0])
            rows.append(slice(start, start + len(y)))
            start += len(y)
        self.environments = rows
        self.targets = torch.cat(targets)
        self.active = torch.cat([images.amax(0, keepdim=True) for images, _ in blocks]).amax(0).nonzero()[:, 0]
        self.blocks = [
            block
            for (images, colours), environment in zip(blocks, rows, strict=True)
            for block in _blocks(images[:, self.active], colours, environment.start)
        ]
        self.first, self.second = (self.targets.new_empty(start, hidden) for _ in range(2))
        self.logits = self.targets.new_empty(start)
        largest = max(len(block.pixels) for block in self.blocks)
        self.scratch = [self.targets.new_empty(largest, hidden) for _ in range(2)]

    @torch.no_grad()
    def __call__(self, network: ColoredMNISTMLP, weight: float, divisor: float = 1.0) -> None:
        """Sets ``.grad`` of all parameters of ``network`` for the penalty weight λ."""
        self._forward(network)
        self._backward(network, self._cotangent(weight), divisor)

    def _forward(self, network: ColoredMNISTMLP) -> None:
        one, two, head = _layers(network)
        weights = self._first_weights(one.weight)
        for rows, channel, pixels in self.blocks:
            first, second = self.first[rows], self.second[rows]
            torch.addmm(one.bias, pixels, weights[channel], out=first).relu_()
            torch.addmm(two.bias, first, two.weight.t(), out=second).relu_()
            torch.mv(second, head.weight[0], out=self.logits[rows]).add_(head.bias)

    def _cotangent(self, weight: float) -> Tensor:
        """∂(mean_τ R_τ + λ g_τ²)/∂z, with g_τ = mean_i (σ(z_i) − y_i) z_i."""
        probabilities = self.logits.sigmoid()
        slopes = probabilities - self.targets
        curved = slopes + probabilities * (1 - probabilities) * self.logits  # ∂((σ(z) − y) z)/∂z
        cotangent = torch.empty_like(slopes)
        for rows in self.environments:
            derivative = (slopes[rows] * self.logits[rows]).mean()
            total = slopes[rows] + 2 * weight * derivative * curved[rows]
            cotangent[rows] = total / (len(total) * len(self.environments))
        return cotangent

    def _backward(self, network: ColoredMNISTMLP, cotangent: Tensor, divisor: float) -> None:
        one, two, head = _layers(network)
        grads: dict[Tensor, Tensor] = {parameter: torch.zeros_like(parameter) for parameter in network.parameters()}
        first_grads = one.weight.new_zeros(self.channels, one.out_features, len(self.active))
        for rows, channel, pixels in self.blocks:
            first, second, block = self.first[rows], self.second[rows], cotangent[rows]
            by_second, by_first = (scratch[: len(pixels)] for scratch in self.scratch)
            grads[head.weight][0].addmv_(second.t(), block)
            torch.mul(block.unsqueeze(1), head.weight, out=by_second)
            _through_relu(by_second, second)
            grads[two.weight].addmm_(by_second.t(), first)
            grads[two.bias].add_(by_second.sum(0))
            torch.mm(by_second, two.weight, out=by_first)
            _through_relu(by_first, first)
            first_grads[channel].addmm_(by_first.t(), pixels)
            grads[one.bias].add_(by_first.sum(0))
        grads[head.bias].add_(cotangent.sum())
        grads[one.weight].view(one.out_features, self.channels, -1)[:, :, self.active] = first_grads.transpose(0, 1)
        for parameter, grad in grads.items():
            parameter.grad = grad.add_(parameter, alpha=2 * self.l2).div_(divisor)

    def _first_weights(self, weight: Tensor) -> Tensor:
        """(channels, active pixels, hidden)."""
        return weight.view(weight.shape[0], self.channels, -1)[:, :, self.active].permute(1, 2, 0).contiguous()


def _layers(network: ColoredMNISTMLP) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    one, two, head = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    return one, two, head


def _through_relu(gradient: Tensor, activation: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0, grad_input=gradient)


def _blocks(images: Tensor, colours: Tensor, start: int) -> list[Block]:
    """Consecutive rows of one colour each, of at most ``BLOCK_ROWS`` on a CPU; ``colours`` is sorted."""
    blocks = []
    for channel in colours.unique().tolist():
        own = images[colours == channel]
        for pixels in own.split(BLOCK_ROWS if images.device.type == "cpu" else len(own)):
            blocks.append(Block(slice(start, start + len(pixels)), channel, pixels.contiguous()))
            start += len(pixels)
    return blocks
