"""Conv4, the four-block convolutional network of few-shot learning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_gp import checks


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, batch normalisation, ReLU and downsampling, then a linear head.

    Batch normalisation always uses the statistics of the batch at hand and keeps no running ones, as in C. Finn et
    al., 2017: at evaluation the query predictions therefore depend on the other query images (transductive).

    Args:
        ways: number of classes, the output dimension.
        channels: 64 for Omniglot, 32 for mini-ImageNet.
        in_channels: 1 for grey images, 3 for colour.
        image_size: height and width of the square input; 28 and 84 are usual.
        downsample: ``"max_pool"`` (2×2, mini-ImageNet and most code for Omniglot) or ``"stride"`` (strided
            convolutions, Finn et al. on Omniglot).

    Raises:
        ValueError: if an argument is below 1, or the image is too small to be halved four times.

    Example:
        >>> import torch
        >>> Conv4(ways=5)(torch.zeros(10, 1, 28, 28)).shape
        torch.Size([10, 5])
    """

    def __init__(
        self,
        ways: int,
        channels: int = 64,
        in_channels: int = 1,
        image_size: int = 28,
        downsample: Literal["max_pool", "stride"] = "max_pool",
    ) -> None:
        super().__init__()
        checks.whole(1, ways=ways, channels=channels, in_channels=in_channels)
        checks.whole(16, hint="four halvings need at least 16 pixels", image_size=image_size)
        if downsample not in ("max_pool", "stride"):
            raise ValueError(f"downsample={downsample!r} is unknown; use 'max_pool' or 'stride'.")
        side = image_size
        blocks: list[nn.Module] = []
        for index in range(4):
            blocks.append(_block(in_channels if index == 0 else channels, channels, downsample))
            side = side // 2 if downsample == "max_pool" else (side + 1) // 2
        self.body = nn.Sequential(*blocks, nn.Flatten(-3))
        self.head = nn.Linear(channels * side * side, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images x (K, in_channels, image_size, image_size) to logits (K, ways)."""
        out: Tensor = self.head(self.body(x))
        return out


def _block(in_channels: int, channels: int, downsample: str) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels, track_running_stats=False)
    if downsample == "stride":
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, stride=2, padding=1), norm, nn.ReLU())
    # ReLU is monotone, so it commutes with max-pooling; after it there are four times fewer elements to visit.
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), norm, nn.MaxPool2d(2), nn.ReLU())
