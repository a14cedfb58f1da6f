"""One step of gradient descent or ascent on many environments at once, and what its rate may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import torch
from torch import Tensor

from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Parameters, Rates, RateSchedule


def gradient_steps(lr: RateSchedule, normalize: bool = False) -> Callable[[Parameters, Parameters], Parameters]:
    """The steps θ, g -> θ − α g of gradient descent (ascent where α < 0), one after the other.

    Args:
        lr: α, see ``adapt``.
        normalize: g/‖g‖ of each environment in place of g.
    """
    numbers = count()

    def update(theta: Parameters, gradient: Parameters) -> Parameters:
        rates = lr[min(next(numbers), len(lr) - 1)] if isinstance(lr, tuple) else lr
        gradient = unit(gradient) if normalize else gradient
        return {name: stepped(value, gradient[name], rate_of(rates, name)) for name, value in theta.items()}

    return update


def unit(stacked: Parameters) -> Parameters:
    """v/‖v‖ over all parameters of each environment, (E, *shape); 0 where v is 0, and so is its derivative there."""
    norm = norm_per_environment(stacked)
    moving = norm != 0  # NaN included
    factor = torch.where(moving, 1 / torch.where(moving, norm, 1.0), 0.0)
    return {name: value * factor.reshape(-1, *[1] * (value.ndim - 1)) for name, value in stacked.items()}


def stepped(value: Tensor, gradient: Tensor, rate: float | Tensor) -> Tensor:
    """``value − rate · gradient``, in one kernel where the rate is a number."""
    if isinstance(rate, Tensor):
        return value - rate * gradient
    return torch.sub(value, gradient, alpha=rate)


def rate_of(lr: Rates, name: str) -> float | Tensor:
    """The rate of one parameter."""
    if isinstance(lr, Mapping) and name not in lr:
        raise ValueError(f"lr gives no rate for {name!r}; it has {sorted(lr)}. Give one number, or a rate for each.")
    return lr[name] if isinstance(lr, Mapping) else lr


def constant_rate(lr: Rates, name: str) -> float | Tensor:
    """The rate of one parameter, by which nothing is differentiated."""
    rate = rate_of(lr, name)
    return rate.detach() if isinstance(rate, Tensor) else rate


def norm_per_environment(stacked: Parameters) -> Tensor:
    """Euclidean norm over all parameters of each environment: tensors (E, *shape) -> (E,).

    Its derivative at zero is zero, so that a path of length 0 has a finite gradient. NaN gives NaN.
    """
    squares = torch.stack([as_rows(value).square().sum(1) for value in stacked.values()]).sum(0)
    moving = squares != 0  # NaN included
    return torch.where(moving, torch.where(moving, squares, 1.0).sqrt(), 0.0)
