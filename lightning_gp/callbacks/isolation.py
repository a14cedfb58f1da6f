"""Running code of a module without a trace: what training does next is bitwise what it would have done anyway."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch

from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks.reach import Snapshot
from lightning_gp.callbacks.shards import reshard
from lightning_gp.checks import first_of
from lightning_gp.functional.kernels import eager_code


class Isolation:
    """Code that runs in isolation.

    Attributes:
        snapshot: of everything that the code can reach, from before it ran.
        module: whose code it is.
    """

    def __init__(self, snapshot: Snapshot, module: LightningModule) -> None:
        self.snapshot, self.module = snapshot, module
        self.begin()

    def begin(self) -> None:
        """Iterators are copies and log methods shadows; putting everything back takes both away again."""
        self.snapshot.lend()
        for module in self.snapshot.of_type(LightningModule):
            module.__dict__["log"] = module.__dict__["log_dict"] = _nothing
            with suppress(RuntimeError):  # no trainer holds it
                if module._trainer is not None and module.trainer.loggers:
                    module.trainer.loggers = [_Silence()]  # type: ignore[list-item]

    def again(self) -> None:
        """What runs next begins with what the code before has begun with, random numbers excepted."""
        reshard(self.module)
        self.snapshot.put_back()
        self.begin()


@contextmanager
def isolated(
    module: LightningModule, seed: int = 0, apart: tuple[type, ...] = (), verify: str = "", **roots: object
) -> Iterator[Isolation]:
    """Everything that a module's code may change is put back afterwards, by value and as the same objects.

    - Random numbers (``random``, numpy, torch on the CPU and the module's device) are forked, and start from ``seed``:
      dropout draws the same masks at every measurement. Generators of the module's own go on from where they are.
    - Whatever hangs on the module or its Trainer: parameters (frozen or not, changed in place or re-pointed),
      gradients, buffers, modes, hooks, metrics, attributes, and what they hold, through containers, objects, closures,
      bound methods, iterators, classes and module variables of the user's code; optimizers, schedulers and loops too.
      Not looked into: loggers, profilers, the items of large data sets, threads, sockets.
    - ``log`` and ``log_dict`` do nothing, and the trainer has no loggers.
    - Autocast, inference mode, anomaly detection and compiled code are off; gradients are on.

    Args:
        module: a LightningModule; one that no trainer holds is fine.
        seed: of the random numbers inside.
        apart: types of objects that are left alone.
        verify: if not empty, everything is compared afterwards, and who is named here cannot measure if anything
            differs.
        **roots: further objects that the code may change.

    Raises:
        ValueError: with ``verify``, naming what has changed and could not be put back: open files, generators, data.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    reshard(module)
    snapshot = Snapshot({"module": module, **roots}, apart, thorough=bool(verify))
    try:
        with ExitStack() as stack:
            stack.enter_context(forked_rng(device, seed))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(eager_code())
            # A probe whose loss is NaN must report it, not raise.
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
            yield Isolation(snapshot, module)
    finally:
        reshard(module)
        snapshot.put_back()
    left = snapshot.changes() if verify else []
    if left:
        shown = first_of(left)
        raise ValueError(
            f"{verify} runs the code of {type(module).__name__} once more, and that changes {shown}, which cannot be "
            "put back: the run would not be what it is without this callback. Advance files, generators and data "
            "loaders outside of that code, or give the callback a loss_fn=... that leaves them alone."
        )


def random_state(device: torch.device) -> tuple[Any, ...]:
    """Of Python's, numpy's and torch's global generators, the last on the CPU and a device."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), own


def set_random_state(device: torch.device, state: tuple[Any, ...]) -> None:
    """Puts a ``random_state`` back."""
    python, numpy, cpu, own = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if own is not None:
        torch.get_device_module(device).set_rng_state(own, device)


@contextmanager
def forked_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers start from ``seed``, and go on afterwards as if nothing had drawn any."""
    before = random_state(device)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        with torch.get_device_module(device).device(device):
            torch.get_device_module(device).manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(device, before)


def _nothing(*args: object, **kwargs: object) -> None:
    return None


class _Silence:
    """Stands in for a logger: any attribute, any call, any item of it is again silence."""

    def __getattr__(self, name: str) -> _Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> _Silence:
        return self

    def __getitem__(self, key: object) -> _Silence:
        return self
