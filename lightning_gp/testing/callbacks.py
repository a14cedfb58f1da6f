"""``check_callback``: what a measurement promises."""

from __future__ import annotations

import math
import pickle
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks import Probe
from lightning_gp.contracts import Key
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.modules import MAML
from lightning_gp.networks import SinusoidMLP
from lightning_gp.testing.processes import on_processes
from lightning_gp.testing.promises import Checks, check_promises, require
from lightning_gp.testing.runs import Data, difference, fit, middle, seeded, state_of


def default_module() -> MAML:
    """MAML of a small network on sinusoids."""
    return MAML(SinusoidMLP([8]), inner_lr=0.01, criterion=F.mse_loss)


def default_data() -> SinusoidDataModule:
    """Four sinusoids a batch, in float64."""
    return SinusoidDataModule(
        shots=5, queries=5, environments_per_batch=4, iterations_per_epoch=3, val_episodes=4, dtype="float64"
    )


def check_callback(
    make_callback: Callable[[], Probe],
    make_module: Callable[[], LightningModule] = default_module,
    make_data: Callable[[], Data] = default_data,
    skip: Collection[str] = (),
    tolerance: float = 1e-6,
    ignore: Collection[str] = (),
) -> Checks:
    """Checks what a ``Probe`` promises, on short trainings in float64 on the CPU.

    | promise | kept where |
    |---|---|
    | ``untouched`` | with it attached weights, random numbers and other metrics are bitwise the same |
    | ``keys`` | it logs something, and each key, without ``prefix``, is one of its ``keys`` |
    | ``processes`` | two processes log the values of one, and both the same |
    | ``resumed`` | after an interruption the values are those of the run that was not interrupted |
    | ``pickled`` | a pickled one measures the same |

    Args:
        make_callback: builds the callback; its class will do where every argument has a default.
        make_module: builds what it is attached to; MAML on sinusoids, if not given.
        make_data: builds its data, of which two processes must be able to take shares.
        skip: names of promises to leave out.
        tolerance: relative, between the values of one process and of two.
        ignore: keys, as declared, that say how a search went and not what it found: they may differ between processes.

    Returns:
        The names of the promises that were checked; ``skipped`` says why the others were not.

    Raises:
        TypeError: if ``make_callback`` builds no ``Probe``.
        ValueError: if ``skip`` names no promise.
        AssertionError: naming the promise that is broken, by how much, and what to change.

    Example::

        def test_my_callback():
            check_callback(MyProbe)
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        callback = make_callback()
        if not isinstance(callback, Probe):
            raise TypeError(
                f"make_callback built a {type(callback).__name__}; check_callback takes a function that builds a "
                "Probe, such as the class itself."
            )
        subject = _Subject(make_callback, make_module, make_data, Path(folder), tolerance, ignore)
        promises = {
            "untouched": subject.untouched,
            "keys": subject.keys,
            "processes": subject.processes,
            "resumed": subject.resumed,
            "pickled": subject.pickled,
        }
        return check_promises(type(callback).__name__, promises, skip)


def declared(name: str, keys: Collection[Key]) -> bool:
    """Whether a logged name, without prefix, is one of the keys."""
    return any(re.fullmatch(key.pattern, name) for key in keys)


class _Run:
    """A training and what it left."""

    def __init__(self, callback: Probe | None, module: LightningModule, data: Data, **options: Any) -> None:
        trainer = fit(module, data, callbacks=[] if callback is None else [callback], **options)
        self.random = torch.rand(3)
        self.state = state_of(module)
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.values: Mapping[str, float] = {} if callback is None else callback.values


class _Subject:
    """A callback, what it is attached to, and one function for each promise."""

    def __init__(
        self,
        make_callback: Callable[[], Probe],
        make_module: Callable[[], LightningModule],
        make_data: Callable[[], Data],
        folder: Path,
        tolerance: float,
        ignore: Collection[str],
    ) -> None:
        self.make_callback, self.make_module, self.data = make_callback, make_module, make_data
        self.folder, self.tolerance = folder, tolerance
        self.ignored = [Key(name, "", "") for name in ignore]
        self.prefix = make_callback().prefix

    def run(self, callback: Probe | None, **options: Any) -> _Run:
        seeded()
        return _Run(callback, self.make_module().double(), self.data(), **options)

    @cached_property
    def bare(self) -> _Run:
        """Without it."""
        return self.run(None)

    @cached_property
    def whole(self) -> _Run:
        """With it; a checkpoint of every step is in ``folder``."""
        return self.run(self.make_callback(), folder=self.folder)

    def untouched(self) -> None:
        mend = (
            "measure in measure() and check(), which run isolated; in other hooks change nothing of the module, the "
            "Trainer or the random numbers."
        )
        apart = difference(self.whole.state, self.bare.state)
        require(not apart, f"with it attached, training ends with other weights: {apart}.", mend)
        same = torch.equal(self.whole.random, self.bare.random)
        require(same, "with it attached, the random numbers after training are others: it draws some.", mend)
        for name, value in self.bare.metrics.items():
            other = self.whole.metrics.get(name, math.nan)
            require(_same(other, value), f"with it attached, {name} is {other!r} and not {value!r}.", mend)

    def keys(self) -> None:
        keys = type(self.make_callback()).keys
        found = {*self.whole.values, *(self.whole.metrics.keys() - self.bare.metrics.keys())}
        bare = {name.removeprefix(self.prefix) for name in found}
        logged = sorted(name for name in bare if not name.startswith("cost_seconds/"))
        names = [key.name for key in keys]
        require(
            bool(logged),
            f"it logged nothing; its keys are {names}.",
            "return Report({key: number}) from measure(), or give make_module and make_data that it can measure.",
        )
        strange = [name for name in logged if not declared(name, keys)]
        require(
            not strange,
            f"it logs {', '.join(strange)}, which none of its keys names: {names}.",
            "add Key(name, range, meaning) to the class's keys, with <i> for a number and <group> for a name.",
        )

    def processes(self) -> None:
        def values(rank: int) -> Mapping[str, float]:
            return self.run(self.make_callback(), devices=2).values

        alone = self.run(self.make_callback()).values
        mend = (
            "sum over processes before a statistic is taken, by measurement.mean_over_environments, "
            "measurement.mean_loss or measurement.ranks; for what may differ from run to run, ignore=."
        )
        first, second = on_processes(values)
        compared = [name for name in alone if not declared(name.removeprefix(self.prefix), self.ignored)]
        for name in compared:
            one, two = first.get(name, math.nan), second.get(name, math.nan)
            require(_same(one, two), f"of two processes, one logs {name} = {one!r}, the other {two!r}.", mend)
            error = abs(one - alone[name]) / (abs(alone[name]) + 1e-12)
            require(
                _same(one, alone[name]) or error <= self.tolerance,
                f"two processes log {name} = {one!r}, one process {alone[name]!r}: {error:.2g} apart (relative, "
                f"allowed {self.tolerance:g}).",
                mend,
            )

    def resumed(self) -> None:
        expected = self.whole.values
        path = middle(self.folder)
        found = self.run(self.make_callback(), resume=path).values
        for name, value in expected.items():
            other = found.get(name, math.nan)
            require(
                _same(other, value),
                f"after an interruption at {path.stem} it logs {name} = {other!r}, without one {value!r}.",
                "save in state_dict() what it remembers from step to step, and put it back in load_state_dict().",
            )

    def pickled(self) -> None:
        try:
            other = pickle.loads(pickle.dumps(self.make_callback()))
        except Exception as error:
            raise AssertionError(
                f"it cannot be pickled: {error}. To mend it: keep no lambdas, local functions or open files in its "
                "attributes."
            ) from error
        found = self.run(other).values
        expected = self.run(self.make_callback()).values
        different = [name for name, value in expected.items() if not _same(found.get(name, math.nan), value)]
        require(
            not different,
            f"a pickled one logs other values of {', '.join(different)}.",
            "keep what it measures with in plain attributes.",
        )


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
