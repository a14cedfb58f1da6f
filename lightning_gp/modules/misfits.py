"""What the error of a network on data means, where the two do not fit: in other words than torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_gp.types import Parameters

FIRST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def naming_misfits(network: nn.Module, parameters: Parameters, x: Tensor) -> Iterator[None]:
    """Says what network and data want of each other, where the network fails inside.

    Args:
        network: that runs.
        parameters: θ, (*shape).
        x: the inputs of one environment, (K, *feature).

    Raises:
        ValueError: if inputs and parameters are of two precisions, or the first layer cannot take the shape.
    """
    with _naming_shapes(network, x), _naming_precisions(x, parameters):
        yield


@contextmanager
def _naming_precisions(x: Tensor, parameters: Parameters) -> Iterator[None]:
    """Says so where a network fails on inputs of another precision than its own, as numpy's float64 is."""
    try:
        yield
    except RuntimeError as error:
        kinds = {value.dtype for value in parameters.values() if value.is_floating_point()}
        if not x.is_floating_point() or x.dtype in kinds or torch.is_autocast_enabled(x.device.type):
            raise
        raise ValueError(
            f"The inputs are of {x.dtype}, the network's parameters of {', '.join(map(str, sorted(kinds, key=str)))}. "
            "Make them the same: x.float() for the data (numpy's default is float64), network.double(), or "
            "Trainer(precision='64-true')."
        ) from error


@contextmanager
def _naming_shapes(network: nn.Module, x: Tensor) -> Iterator[None]:
    """Says what network and data want of each other where the first layer cannot take the inputs."""
    try:
        yield
    except RuntimeError as error:
        layers = (each for each in network.modules() if isinstance(each, FIRST_LAYERS))
        first = next(layers, None)
        channels = getattr(first, "in_channels", None) or getattr(first, "in_features", None)
        if first is None or ("shape" not in str(error) and "channels" not in str(error) and "size" not in str(error)):
            raise
        raise ValueError(
            f"{type(network).__name__} cannot take the data: an example has shape {tuple(x.shape[1:])}"
            f"{' (channels, height, width)' if x.ndim == 4 else ''}, and the network's first layer takes {channels} "
            f"{'channels' if hasattr(first, 'in_channels') else 'features'} ({first}). Build the network for the data "
            "(for example Conv4(in_channels=3, image_size=84)), or change the data (colour, image_size). torch says: "
            f"{str(error).splitlines()[0]}"
        ) from error
