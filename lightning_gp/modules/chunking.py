"""How many environments are computed at once: fast, within bounded memory.

The rule of ``vectorize="auto"``, from the figures of ``benchmarks/``:

1. a network with convolutions on the CPU: one environment at a time. It is bound by arithmetic; batching different
   weights (grouped convolutions) only adds traffic.
2. anything else: as many at once as keep what autograd stores under ``MEMORY_BUDGET``, measured on the first
   environment of the first batch.

One environment at a time on the CPU, images are laid out channels last, which two-dimensional convolutions compute 1.1
to 1.5 times as fast, second derivatives included; whatever follows them keeps the layout.

``True`` forces all at once, ``False`` one at a time, a number that many. The result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gp.environments import Environments
from lightning_gp.types import Examples

Vectorize: TypeAlias = bool | int | Literal["auto"]

MEMORY_BUDGET = 2**30
"""Bytes that autograd may store for one chunk of environments under ``vectorize="auto"``."""


def check_vectorize(value: Vectorize) -> None:
    """Refuses anything but True, False, a positive number and ``"auto"``.

    Raises:
        ValueError: naming the value.
    """
    if value == "auto" or isinstance(value, bool) or (isinstance(value, int) and value >= 1):
        return
    raise ValueError(
        f"vectorize={value!r}; allowed are 'auto', True (all at once), False (one at a time), or a number."
    )


def has_convolutions(network: nn.Module) -> bool:
    """Whether any layer of ``network`` is a convolution."""
    return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in network.modules())


def channels_last(environments: Environments) -> Environments:
    """One environment's images (1, K, C, height, width), in memory ordered (K, height, width, C); all else as it is."""

    def laid_out(examples: Examples) -> Examples:
        x, y = examples
        if x.ndim != 5 or x.device.type != "cpu":
            return examples
        # With C = 1 both layouts are the same memory, but `contiguous` then leaves strides that name the wrong one.
        C, height, width = x.shape[2:]
        images = x[0].contiguous(memory_format=torch.channels_last)
        return images.as_strided(images.shape, (C * height * width, 1, C * width, C)).unsqueeze(0), y

    query = environments.query
    return Environments(laid_out(environments.support), None if query is None else laid_out(query))


def chunk_size(vectorize: Vectorize, count: int, network: nn.Module, one: Callable[[], Tensor]) -> int:
    """Environments per chunk.

    Args:
        vectorize: the user's choice.
        count: number of environments E in the batch.
        network: the network.
        one: computes the training objective of a single environment.

    Returns:
        Between 1 and ``count``.
    """
    if isinstance(vectorize, bool):
        return count if vectorize else 1
    if isinstance(vectorize, int):
        return min(vectorize, count)
    device = next(network.parameters()).device
    if count == 1 or (device.type == "cpu" and has_convolutions(network)):
        return 1
    return max(1, min(count, MEMORY_BUDGET // max(1, stored_bytes(one, device))))


def stored_bytes(function: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes of the tensors that autograd saves while ``function`` runs, random numbers left untouched."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        function()
    return sum(storages.values())
