"""Settings of a run in words that JSON can hold, that are the same on each machine, and that tell runs apart."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp import __version__
from lightning_gp.environments import Environments
from lightning_gp.trainability.objective import rate_of
from lightning_gp.trainability.stream import Data

# Where the data lie and how they are loaded does not change what they are.
_NOT_DATA = ("root", "data_dir", "cache_dir", "download", "num_workers")
_ANY_RATE = ("inner_lr", "coefficient", "penalty_weight")


def plain(value: object) -> Any:
    """``value`` as JSON can hold it; classes, functions and objects by name, modules by their structure."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, nn.Module):
        return " ".join(str(value).split())
    if callable(value) or isinstance(value, type):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def checksum(tensors: Iterable[Tensor]) -> str:
    """CRC-32 of the bytes of all tensors."""
    crc = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        crc = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}"


def describe_objective(objective: Any) -> dict[str, Any]:
    """Class, arguments, network, and what its α is."""
    arguments = {name: value for name, value in dict(objective.hparams).items() if name not in _ANY_RATE}
    rate = rate_of(objective)
    return {
        "class": type(objective).__name__,
        "rate": rate.name,
        "label": rate.label,
        "curvature": {"kind": rate.kind, "steps": rate.steps, "factor": rate.factor},
        "arguments": plain(arguments),
        "network": plain(objective.network),
        "criterion": plain(objective.criterion),
    }


def describe_data(data: Data) -> dict[str, Any]:
    """Class and arguments of a DataModule; tensors are told apart by the checksum of the first batch."""
    arguments = dict(getattr(data, "hparams", {}))
    return {
        "class": type(data).__name__,
        "arguments": plain({name: value for name, value in arguments.items() if name not in _NOT_DATA}),
    }


def describe_seed(weights: Iterable[Tensor], batch: list[Environments]) -> dict[str, str]:
    """Checksums of the initial weights and of the first batch."""
    tensors = [tensor for environments in batch for examples in environments if examples for tensor in examples]
    return {"weights": checksum(weights), "first_batch": checksum(tensors)}


def versions() -> dict[str, str]:
    """What computed the numbers."""
    return {"lightning_gp": __version__, "torch": torch.__version__, "python": platform.python_version()}
