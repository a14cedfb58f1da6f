"""Layers whose gradient is cheap to differentiate again, for losses that are differentiated twice on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn import functional as F

from lightning_gp.functional.batch_norm import batch_norm
from lightning_gp.functional.convolution import cheap_convolutions
from lightning_gp.functional.norms import Replaced

LAYERS = (nn.modules.batchnorm._BatchNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class CheapLayers(Replaced):
    """Inside, convolutions, and batch norm by batch statistics, are this package's, on a CPU.

    Example:
        >>> import torch
        >>> x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> with CheapLayers():
        ...     own = F.conv2d(x, w)
        >>> torch.equal(own, F.conv2d(x, w))
        True
    """

    def __init__(self) -> None:
        super().__init__({F.batch_norm: batch_norm, **cheap_convolutions()})


def cheap_layers(module: nn.Module) -> AbstractContextManager[Any]:
    """``CheapLayers`` where ``module`` has such layers; modes cost every operation of the others a microsecond.

    Args:
        module: whose losses are to be differentiated twice.
    """
    return CheapLayers() if any(isinstance(layer, LAYERS) for layer in module.modules()) else nullcontext()
