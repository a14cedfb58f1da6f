"""ResNet-12, the residual network of few-shot learning.

[O18] B. Oreshkin, P. Rodríguez López, A. Lacoste, "TADAM: task dependent adaptive metric for improved few-shot
    learning", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_gp import checks

SLOPE = 0.1
"""Of the leaky ReLU, for negative inputs."""
SMALLEST = 16
"""Pixels that four halvings need."""


class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions each, global average pooling, then a linear head [O18].

    Batch normalisation always uses the statistics of the batch at hand and keeps no running ones, like ``Conv4``.
    There is no dropout. Any image of at least 16×16 pixels fits.

    Args:
        ways: number of classes, the output dimension.
        widths: channels of the four blocks; (64, 128, 256, 512) as in [O18], others use (64, 160, 320, 640).
        in_channels: 3 for colour images, 1 for grey ones.

    Raises:
        ValueError: if an argument is below 1 or there are not four widths; in ``forward``, if an image does not fit.

    Example:
        >>> import torch
        >>> ResNet12(ways=5, widths=(4, 4, 6, 8))(torch.zeros(10, 3, 16, 16)).shape
        torch.Size([10, 5])
    """

    def __init__(self, ways: int, widths: Sequence[int] = (64, 128, 256, 512), in_channels: int = 3) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths={tuple(widths)} must be four numbers, the channels of the four blocks.")
        checks.whole(1, ways=ways, widths=min(widths), in_channels=in_channels)
        self.in_channels = in_channels
        blocks = [_Block(before, after) for before, after in pairwise((in_channels, *widths))]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(-3))
        self.head = nn.Linear(widths[-1], ways)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images x (K, in_channels, height, width) to logits (K, ways)."""
        if x.shape[-3] != self.in_channels or min(x.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"ResNet12 takes images of {self.in_channels} channels and at least {SMALLEST}x{SMALLEST} pixels, got "
                f"{tuple(x.shape[-3:])} (channels, height, width). Change the data's image_size or in_channels."
            )
        out: Tensor = self.head(self.body(x))
        return out


class _Block(nn.Module):
    """max_pool(leaky_relu(three convolutions of x + 1×1 convolution of x)), all of them batch-normalised."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [*_convolution(in_channels if index == 0 else channels, channels, 3), nn.LeakyReLU(SLOPE)]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(*_convolution(in_channels, channels, 1))
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        # Leaky ReLU is monotone, so it commutes with max-pooling; after it there are four times fewer elements.
        out: Tensor = self.activation(self.pool(self.residual(x) + self.shortcut(x)))
        return out


def _convolution(in_channels: int, channels: int, size: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return convolution, nn.BatchNorm2d(channels, track_running_stats=False)
