"""Networks, data and losses for the curvature benchmarks; each case starts from the seed it is given.

MNIST is read from $LIGHTNING_GP_DATA/mnist or ../shared/data/mnist.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

DATA = Path(os.environ.get("LIGHTNING_GP_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "mnist"


class Case(NamedTuple):
    """A network, the batch on which its Hessian is taken, the loss, and how training goes on."""

    network: nn.Module
    x: Tensor
    y: Tensor
    criterion: nn.Module
    lr: float
    batch_size: int

    def loss(self, parameters: dict[str, Tensor]) -> Tensor:
        """Mean loss on the batch."""
        return self.criterion(functional_call(self.network, parameters, (self.x,)), self.y)

    def parameters(self) -> dict[str, Tensor]:
        """The network's own, by name."""
        return dict(self.network.named_parameters())

    def train(self, steps: int) -> Case:
        """Plain SGD on minibatches."""
        optimizer = torch.optim.SGD(self.network.parameters(), self.lr)
        for chosen in self._batches(steps):
            optimizer.zero_grad()
            self.criterion(self.network(self.x[chosen]), self.y[chosen]).backward()
            optimizer.step()
        return self

    def _batches(self, steps: int) -> Iterator[Tensor]:
        for _ in range(steps):
            yield torch.randperm(len(self.x))[: self.batch_size]


def mnist(count: int) -> tuple[Tensor, Tensor]:
    def read(name: str, header: int) -> np.ndarray:
        path = next(DATA.rglob(name), None)
        if path is None:
            raise FileNotFoundError(
                f"{name} is not under {DATA}; set LIGHTNING_GP_DATA to the folder that holds mnist/"
            )
        return np.frombuffer(bytearray(gzip.decompress(path.read_bytes())), np.uint8, offset=header)

    images = torch.tensor(read("train-images-idx3-ubyte.gz", 16)).view(-1, 28, 28)[:count]
    return images.float() / 255, torch.tensor(read("train-labels-idx1-ubyte.gz", 8))[:count].long()


def colored_mnist_mlp(count: int = 5000) -> Case:
    """392-256-256-1 on colored MNIST."""
    images, digits = mnist(count)
    y = (digits < 5) ^ (torch.rand(len(digits)) < 0.25)
    colour = (y ^ (torch.rand(len(digits)) < 0.2)).long()
    x = torch.stack([images[:, ::2, ::2]] * 2, 1)
    x[torch.arange(len(x)), 1 - colour] = 0
    network = nn.Sequential(nn.Linear(392, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    return Case(network, x.flatten(1), y.float()[:, None], nn.BCEWithLogitsLoss(), 0.1, 100)


def conv4() -> Case:
    """Four convolutions of 64 channels with batch norm (112k parameters), 5 digits, 16 images each."""
    images, digits = mnist(5000)
    chosen = torch.cat([(digits == digit).nonzero()[:16, 0] for digit in range(5)])
    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64, track_running_stats=False)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))
    return Case(network, images[chosen][:, None], digits[chosen], nn.CrossEntropyLoss(), 0.05, 40)


def resnet18() -> Case:
    """torchvision's, batch statistics, 32 random images of 32 x 32 in 10 classes."""
    from torchvision.models import resnet18 as build

    network = build(num_classes=10)
    for module in network.modules():  # no buffers: the same function for every method
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return Case(network, torch.randn(32, 3, 32, 32), torch.randint(10, (32,)), nn.CrossEntropyLoss(), 0.05, 32)


def sinusoid_mlp() -> Case:
    """1-40-40-1 on one sinusoid."""
    x = torch.rand(500, 1) * 10 - 5
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    return Case(network, x, 2 * torch.sin(x + 1), nn.MSELoss(), 0.01, 50)


def digits_mlp() -> Case:
    """196-100-10, tanh, ten digits."""
    images, digits = mnist(1000)
    network = nn.Sequential(nn.Linear(196, 100), nn.Tanh(), nn.Linear(100, 10))
    return Case(network, images[:, ::2, ::2].flatten(1), digits, nn.CrossEntropyLoss(), 0.1, 50)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: colored_mnist_mlp().train(100),
    "mlp, untrained": colored_mnist_mlp,
    "conv4": lambda: conv4().train(20),
    "resnet18": lambda: resnet18().train(2),
}
EPOCHS: dict[str, Callable[[], Case]] = {
    "mlp": colored_mnist_mlp,
    "conv4": conv4,
    "sinusoid": sinusoid_mlp,
    "digits": digits_mlp,
}


def build(name: str, seed: int = 0, *, epochs: bool = False) -> Case:
    torch.manual_seed(seed)
    return (EPOCHS if epochs else CASES)[name]()
