"""The network of the colored MNIST experiment."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lightning_gp import checks


class ColoredMNISTMLP(nn.Module):
    """A fully connected ReLU network with one logit (M. Arjovsky et al., 2019, section 5.2).

    Weights start uniform as of Glorot and Bengio (2010), biases at zero.

    Args:
        hidden: width of the hidden layers; 390 in the IRM paper's runs, 256 in the trainability maps of T21.
        layers: number of hidden layers.
        channels: 2 for colour images, 1 for gray ones.
        size: height and width of the images.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> import torch
        >>> ColoredMNISTMLP()(torch.zeros(5, 2, 14, 14)).shape
        torch.Size([5, 1])
    """

    def __init__(self, hidden: int = 256, layers: int = 2, channels: int = 2, size: int = 14) -> None:
        super().__init__()
        checks.whole(1, hidden=hidden, layers=layers, channels=channels, size=size)
        widths = [channels * size * size, *[hidden] * layers]
        body: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            body += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(widths[-1], 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (K, channels, size, size) to logits (K, 1)."""
        out: Tensor = self.head(self.body(x))
        return out
