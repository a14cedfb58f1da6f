"""Every count that a public name takes is refused where it is none, before any work, naming argument and value.

Counts are found by the annotations of signatures, ``int`` and ``int | None``, so that a new one is here by itself. What
else a call needs is known by its argument's name.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
import types
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_gp import MAML, Environments
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.functional import Trajectory, UpdateJacobian, adapt
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import BatchStream
from tests.public import PACKAGES

BAD = (-1, 1.5, "3", float("nan"), float("inf"), True, torch.tensor(2), 2 + 0j)
FROM_ZERO = {
    "multi_step_loss",
    "anneal_steps",
    "budget",
    "num_workers",
    "optimizer",
    "predictor_hidden",
    "random_crop",
    "rank",
    "seed",
    "split_seed",
}
"""Counts and positions that may be 0, whoever takes them."""
ZERO_TOO = {
    *(("jacobian_norm", "probes"), ("amplitude_consistency", "probes")),
    *(("adaptation_distance", "steps"), ("expected_adaptation_distance", "steps")),
}
NO_COUNT = {("GradientPenalty", "sign")}
RECORDS = {"Card", "Suggestion"}
"""Made by the package itself, not by its users."""

ONE = torch.ones(1)
weights = {"w": torch.ones(2, requires_grad=True)}
x = torch.rand(2, 3, 1)
tasks = [Environments((x, x))]


def loss(p, x, y):
    return (p["w"].sum() * x - y).square().mean()


def trajectory() -> Trajectory:
    return adapt(loss, weights, (x, x), 0.1)


def squared() -> MAML:
    return MAML(SinusoidMLP((3,)), criterion=F.mse_loss)


NEEDED: dict[str, Callable[[], object]] = {
    "config": lambda: ["sinusoid_maml"],
    "criterion": lambda: F.mse_loss,
    "dataset": lambda: torch.utils.data.TensorDataset(torch.rand(40, 3, 4, 4), torch.arange(40) % 10),
    "eigenvalues": lambda: ONE,
    "episodes": lambda: 4,
    "features": lambda: torch.ones(2, 3, 2),
    "fresh": lambda: True,
    "function": lambda: print,
    "guess": lambda: 0.1,
    "inner_lr": lambda: 0.1 * ONE,
    "inner_lrs": lambda: [0.1],
    "jacobian": lambda: UpdateJacobian(lambda p: p["w"].square().sum(), weights),
    "kind": lambda: "maml",
    "length": lambda: 4,
    "loss": lambda: loss,
    "lr": lambda: 0.1,
    "module": squared,
    "network": lambda: SinusoidMLP((3,), out_features=3),
    "new_features": lambda: torch.ones(2, 3, 2),
    "objective": squared,
    "optima": lambda: torch.ones(2, 2),
    "outer_lrs": lambda: [0.1],
    "parameters": lambda: weights,
    "predict": lambda: lambda p, x: p["w"].sum() * x,
    "root": lambda: ".",
    "seed": lambda: 0,
    "solution_lr": lambda: 0.1,
    "split": lambda: "train",
    "steps": lambda: 1,
    "stream": lambda: BatchStream(tasks),
    "support": lambda: (x, x),
    "theta": lambda: {"w": torch.ones(2, 1)},
    "train": lambda: {"a": (torch.rand(9, 2), torch.ones(9)), "b": (torch.rand(9, 2), torch.ones(9))},
    "trajectory": trajectory,
    "ways": lambda: 3,
    "x": lambda: torch.rand(40, 5),
    "y": lambda: torch.arange(40) % 10,
}
"""By name of the argument."""
FOLDER = tempfile.TemporaryDirectory()  # goes with the process
SHORT = "--trainer.limit_{}_batches=1"
ESPECIALLY = {
    ("compare", "output"): lambda: Path(FOLDER.name) / "runs",
    ("compare", "seeds"): lambda: [0],
    ("compare", "words"): lambda: ["--trainer.max_epochs=1", *map(SHORT.format, ("train", "val", "test"))],
    ("hessian_eigenvalues", "loss"): lambda: lambda p: p["w"].square().sum(),
    ("TrainabilityMap", "data"): SinusoidDataModule,
    ("ModuleMap", "data"): SinusoidDataModule,
    ("ModuleMap", "module"): lambda: lambda seed, value: squared(),
    ("ModuleMap", "name"): lambda: "weight_decay",
    ("ModuleMap", "values"): lambda: [0.1],
    ("diagnose", "data"): SinusoidDataModule,
    ("turning_rate", "loss"): lambda: lambda rate: (rate - 1) ** 2,
    ("BatchStream", "data"): lambda: tasks,
    ("adaptation_distance", "parameters"): lambda: torch.ones(2),
    ("prototype_scores", "x"): lambda: x,
    ("jacobian_norm", "shared"): dict,
    ("jacobian_norm", "x"): lambda: torch.ones(2, 3, 1),
    ("amplitude_consistency", "x"): lambda: torch.ones(2, 3, 1),
    ("amplitude_consistency", "trajectory"): lambda: Trajectory(({"w": torch.ones(2, 1)},) * 2, (), {}),
}


class Count(typing.NamedTuple):
    """One argument of one public name."""

    owner: str
    target: Callable[..., object]
    name: str
    optional: bool
    default: object


def counts_of(target: object) -> dict[str, tuple[bool, object]]:
    """Counts that a function or the constructor of a class takes: whether None is allowed, and the default."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(each)["__init__"] for each in target.__mro__ if "__init__" in vars(each)]
    found: dict[str, tuple[bool, object]] = {}
    for function in functions:
        if not getattr(function, "__module__", "").startswith("lightning_gp"):
            break
        parameters = inspect.signature(function).parameters
        hints = {name: evaluated(p.annotation, function) for name, p in parameters.items()}
        for name, hint in hints.items():
            kinds = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
            if int in kinds and kinds <= {int, type(None)}:
                found.setdefault(name, (type(None) in kinds, parameters[name].default))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def evaluated(annotation: object, function: object) -> object:
    """The annotation as an object; as text where only a type checker knows it."""
    try:
        return eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
    except (NameError, TypeError):
        return annotation


def all_counts() -> list[Count]:
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(f"lightning_gp{package}")
        for owner in module.__all__:
            target = getattr(module, owner)
            if owner in RECORDS or (inspect.isclass(target) and issubclass(target, tuple)):
                continue
            for name, (optional, default) in counts_of(target).items():
                if (owner, name) not in NO_COUNT:
                    found[owner, name] = Count(owner, target, name, optional, default)
    return list(found.values())


COUNTS = all_counts()


def call(count: Count, value: object) -> object:
    """The call with what else it needs, and with what makes it short."""
    arguments: dict[str, object] = {}
    for name, parameter in inspect.signature(count.target).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind.name not in ("VAR_KEYWORD", "VAR_POSITIONAL")
        make = ESPECIALLY.get((count.owner, name)) or (NEEDED.get(name) if required else None)
        if (required or make) and name != count.name:
            assert make is not None, f"{count.owner} needs {name}: say in NEEDED what that may be"
            arguments[name] = make()
    return count.target(**{**arguments, count.name: value})


def test_there_are_many():
    assert len({(count.owner, count.name) for count in COUNTS}) > 200
    assert {"shots", "inner_steps", "every_n_epochs", "k", "max_products", "iterations"} <= {c.name for c in COUNTS}


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: f"{count.owner}-{count.name}")
def test_what_is_no_count_is_refused_by_name_and_value(count):
    zero = [] if count.name in FROM_ZERO or (count.owner, count.name) in ZERO_TOO else [0, np.int64(0)]
    accepted, unnamed = [], []
    for value in [*BAD, *zero, *([] if count.optional else [None])]:
        try:
            call(count, value)
        except (TypeError, ValueError) as error:
            if count.name not in str(error) or (repr(value) not in str(error) and str(value) not in str(error)):
                unnamed.append(f"{value!r}: {type(error).__name__}: {error}")
        else:
            accepted.append(value)
    assert not accepted, f"{count.owner}({count.name}=…) accepts {accepted}"
    assert not unnamed, "\n".join(unnamed)


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: f"{count.owner}-{count.name}")
def test_a_count_of_numpy_is_a_count(count):
    usual = count.default if isinstance(count.default, int) else 4
    call(count, np.int64(usual))
