"""Running code of a module without a trace: what training does next is bitwise what it would have done anyway."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def isolated(module: Any, seed: int = 0) -> Iterator[None]:
    """Everything that a module's code may change is put back afterwards.

    - Random numbers (``random``, numpy, torch on the CPU and the module's device) are forked, and start from ``seed``:
      dropout draws the same masks at every measurement.
    - Buffers, modes, metrics and plain attributes (counters, lists that a step appends to) of every submodule.
    - ``log`` and ``log_dict`` do nothing, and the trainer has no loggers.
    - Autocast, inference mode and anomaly detection are off; gradients are on.

    Gradients in ``.grad`` are safe as long as the code uses ``torch.autograd.grad``.

    Args:
        module: a LightningModule; one that no trainer holds is fine.
        seed: of the random numbers inside.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(_forked_rng(device, seed))
        stack.enter_context(_restored(module))
        stack.enter_context(_muted(module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # A probe whose loss is NaN must report it, not raise.
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        yield


@contextmanager
def _forked_rng(device: torch.device, seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    accelerated = device.type != "cpu"
    with torch.random.fork_rng([device] if accelerated else [], device_type=device.type if accelerated else "cuda"):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if accelerated:
            with torch.get_device_module(device).device(device):
                torch.get_device_module(device).manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Every submodule works on copies of its attributes; the originals are put back untouched."""
    saved = [(each, dict(each.__dict__)) for each in _reachable(module)]
    for each, original in saved:
        each.__dict__.update({name: _copied(value) for name, value in original.items()})
    try:
        yield
    finally:
        for each, original in saved:
            each.__dict__.clear()
            each.__dict__.update(original)


def _reachable(module: nn.Module) -> list[nn.Module]:
    """All submodules, and those (metrics, mostly) that are kept in plain lists and dicts, where torch does not look."""
    found: dict[int, nn.Module] = {}
    waiting: list[Any] = [module]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            if id(value) not in found:
                found[id(value)] = value
                waiting += [
                    held
                    for held in value.__dict__.values()
                    if type(held) in (list, tuple) or type(held) in (dict, OrderedDict)
                ]
        elif isinstance(value, dict):
            waiting += [held for held in value.values() if isinstance(held, nn.Module)]
        else:
            waiting += [held for held in value if isinstance(held, nn.Module)]
    return list(found.values())


def _copied(value: Any) -> Any:
    """A copy that may be changed in place. Objects other than tensors and containers are shared."""
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, set, deque):
        return type(value)(_copied(item) for item in value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    return value


@contextmanager
def _muted(module: nn.Module) -> Iterator[None]:
    """Shadows the log methods on the instances (inside ``_restored``, which takes the shadows away again)."""
    for each in _reachable(module):
        if callable(getattr(each, "log_dict", None)):
            each.__dict__["log"] = each.__dict__["log_dict"] = _nothing
    trainer = getattr(module, "_trainer", None)
    if trainer is None:
        yield
        return
    loggers = trainer.loggers
    trainer.loggers = [_Silence()] if loggers else []
    try:
        yield
    finally:
        trainer.loggers = loggers


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


class _Silence:
    """Stands in for a logger: any attribute, any call, any item of it is again silence."""

    def __getattr__(self, name: str) -> _Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Silence:
        return self

    def __getitem__(self, key: Any) -> _Silence:
        return self
