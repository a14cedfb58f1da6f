"""Small problems in float64 that many tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.environments import Environments
from lightning_gp.networks import Conv4, SinusoidMLP

COMPILES = not torch.__version__.startswith("2.5.")
"""Torch 2.5 cannot compile the meta-gradient; the modules say so."""


class Once(torch.autograd.Function):
    """x², with a first derivative only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@dataclass(frozen=True)
class Problem:
    """A network, a criterion, and a batch of environments."""

    network: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    environments: Environments
    inner_lr: float

    def fresh(self) -> nn.Module:
        return copy.deepcopy(self.network)


def regression(count: int = 4, seed: int = 0, smooth: bool = False) -> Problem:
    """Sinusoid-sized regression; ``smooth`` uses tanh, so that finite differences meet no kink."""
    generator = torch.Generator().manual_seed(seed)

    def examples(points: int) -> tuple[Tensor, Tensor]:
        x = 10 * torch.rand(count, points, 1, generator=generator, dtype=torch.float64) - 5
        phase = torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
        return x, torch.sin(x - phase)

    torch.manual_seed(seed)
    network: nn.Module = SinusoidMLP(hidden=(7, 6)).double()
    if smooth:
        network.body[1], network.body[3] = nn.Tanh(), nn.Tanh()
    return Problem(network, F.mse_loss, Environments(examples(5), examples(6)), inner_lr=0.1)


def images(count: int = 3, seed: int = 0, channels: int = 4, smooth: bool = False) -> Problem:
    """Conv4 with batch normalisation on random 16×16 images of 3 classes; ``smooth`` as in ``regression``."""
    generator = torch.Generator().manual_seed(seed)

    def examples(per_class: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 3 * per_class, 1, 16, 16, generator=generator, dtype=torch.float64)
        return x, torch.arange(3).repeat(per_class).expand(count, -1).contiguous()

    torch.manual_seed(seed)
    network = Conv4(ways=3, channels=channels, image_size=16).double()
    if smooth:
        for block in list(network.body)[:4]:
            block[2], block[3] = nn.AvgPool2d(2), nn.Tanh()
    return Problem(network, F.cross_entropy, Environments(examples(2), examples(3)), inner_lr=0.4)


def flat(tensors: object) -> Tensor:
    """All tensors as one vector; a missing gradient counts as an error."""
    return torch.cat([tensor.flatten() for tensor in tensors])  # type: ignore[attr-defined]


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())
