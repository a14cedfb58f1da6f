"""One trial of the comparison of invariance algorithms: an algorithm, the value of its weight, a seed.

[A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization, section 5.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from lightning_gp.datamodules.named.colored_mnist import ColoredMNISTDataModule
from lightning_gp.modules.and_mask import ANDMask
from lightning_gp.modules.erm import ERM
from lightning_gp.modules.fish import Fish
from lightning_gp.modules.fishr import Fishr
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.modules.group_dro import GroupDRO
from lightning_gp.modules.ib_irm import IBIRM
from lightning_gp.modules.iga import IGA
from lightning_gp.modules.invariance import InvarianceModule
from lightning_gp.modules.irm import IRMv1, REx
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.runs.folders import kept
from lightning_gp.runs.training import quiet_trainer
from lightning_gp.runs.trials import Row, finite, smallest

CHANCE = 0.55
"""A trial with at most this accuracy on the training environments has failed; the labels are balanced."""


@dataclass(frozen=True)
class Settings:
    """Of every trial, whatever its algorithm.

    Attributes:
        examples: in each training environment, those held out for validation included.
        held_out: the share of them that is held out.
        hidden: width of the two hidden layers.
        iterations: full-batch steps of Adam.
        anneal_steps: steps with the penalty weight 1 at the start, of algorithms that have one.
        lr: rate of Adam.
        l2: weight of ‖θ‖² in the objective, that of [A19].
    """

    examples: int = 5000
    held_out: float = 0.2
    hidden: int = 32
    iterations: int = 200
    anneal_steps: int = 70
    lr: float = 2e-3
    l2: float = 1.1e-3


QUICK: dict[str, Any] = {"examples": 500, "hidden": 16, "iterations": 40, "anneal_steps": 15}


class Algorithm(NamedTuple):
    """What is compared.

    Attributes:
        title: for tables and pictures.
        module: its class, or a function that builds it.
        option: the argument that the search varies; empty if there is none, and the trials are restarts alone.
        values: of that argument.
        grayscale: whether images come without their colour.
    """

    title: str
    module: Callable[..., NamedEnvironmentModule]
    option: str = ""
    values: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    grayscale: bool = False


WEIGHT = ("penalty_weight", (1e1, 1e2, 1e3, 1e4))
ALGORITHMS = {
    "erm": Algorithm("ERM", ERM),
    "irmv1": Algorithm("IRMv1", IRMv1, *WEIGHT),
    "rex": Algorithm("REx", REx, *WEIGHT),
    "iga": Algorithm("IGA", IGA, *WEIGHT),
    "fishr": Algorithm("Fishr", Fishr, *WEIGHT),
    "ib_irm": Algorithm("IB-IRM", IBIRM, *WEIGHT),
    "and_mask": Algorithm("AND-mask", ANDMask, "agreement", (0.25, 0.5, 0.75, 1.0)),
    "group_dro": Algorithm("GroupDRO", GroupDRO, "eta", (0.1, 1.0, 10.0, 100.0)),
    "fish": Algorithm("Fish", Fish, "inner_lr", (0.01, 0.1, 1.0, 10.0)),
    "penalty_plus": Algorithm(
        "gradient penalty, +", partial(GradientPenalty, sign=1), "coefficient", (0.1, 1.0, 10.0, 100.0)
    ),
    "penalty_minus": Algorithm(
        "gradient penalty, −", partial(GradientPenalty, sign=-1), "coefficient", (0.001, 0.01, 0.1, 1.0)
    ),
    "oracle": Algorithm("ERM on grey images", ERM, grayscale=True),
}
"""All have four trials for each seed. AND-mask with two environments knows two cases only: half of them, or both."""


def build(algorithm: Algorithm, value: float, settings: Settings) -> NamedEnvironmentModule:
    """The module of a trial. ‖θ‖² has the same weight in every objective: Adam's weight decay is twice that weight."""
    known: dict[str, Any] = {algorithm.option: value} if algorithm.option else {}
    network = ColoredMNISTMLP(settings.hidden, channels=1 if algorithm.grayscale else 2)
    own = algorithm.module if isinstance(algorithm.module, type) else None
    decay = 2 * settings.l2
    if own is not None and issubclass(own, InvarianceModule):
        known |= {"anneal_steps": settings.anneal_steps, "rescale_loss": True, "l2": settings.l2}
        decay = 0.0
    optimizer = partial(torch.optim.Adam, lr=settings.lr, weight_decay=decay)
    return algorithm.module(network, criterion=F.binary_cross_entropy_with_logits, optimizer=optimizer, **known)


@lru_cache(maxsize=2)
def data_of(root: str, seed: int, grayscale: bool, settings: Settings) -> ColoredMNISTDataModule:
    """The data of a seed: those of colour and those in grey are the same digits and labels."""
    data = ColoredMNISTDataModule(
        root,
        grayscale=grayscale,
        examples=settings.examples,
        seed=seed,
        val_fraction=settings.held_out,
        steps_per_epoch=settings.iterations,
    )
    data.setup()
    return data


def path_of(folder: Path, name: str, number: int, seed: int) -> Path:
    """Where the result of trial ``number`` of an algorithm is kept."""
    return folder / "trials" / f"{name}-{number}-seed{seed}.json"


def known_of(name: str, number: int, settings: Settings) -> dict[str, Any]:
    """What the result of a trial depends on, besides the seed."""
    return {**asdict(settings), "option": ALGORITHMS[name].option, "value": ALGORITHMS[name].values[number]}


def trial(name: str, number: int, seed: int, settings: Settings, root: str, folder: Path) -> dict[str, Any]:
    """Trains and evaluates one trial, or reads its result if it is there.

    Args:
        name: of ``ALGORITHMS``.
        number: of the value in its ``values``; each trial starts from weights of its own, the same in every algorithm.
        seed: of the data, and of the weights.
        settings: see ``Settings``.
        root: folder that holds MNIST/raw.
        folder: of the results.

    Returns:
        Accuracy on held-out examples of the training environments (``val``, and ``val_worst`` of the worst), loss and
        objective there, accuracy in the test environment (``test``), whether it ``failed``, and ``seconds``. Numbers
        that are not finite are None.
    """

    def made() -> dict[str, Any]:
        torch.set_num_threads(1)
        algorithm = ALGORITHMS[name]
        data = data_of(root, seed, algorithm.grayscale, settings)
        torch.manual_seed(1000 * seed + number)
        module = build(algorithm, algorithm.values[number], settings)
        start = time.perf_counter()
        trainer = quiet_trainer("cpu", max_steps=settings.iterations, check_val_every_n_epoch=2)  # not in the one epoch
        trainer.fit(module, data)
        (val,) = trainer.validate(module, data, verbose=False)
        (test,) = trainer.test(module, data, verbose=False)
        found = {
            "val": val["val/accuracy"],
            "val_worst": val["val/worst_accuracy"],
            "loss": val["val/loss"],
            "objective": val["val/objective"],
            "test": test["test/accuracy"],
        }
        failed = not all(math.isfinite(value) for value in found.values()) or found["val"] <= CHANCE
        return {
            "algorithm": name,
            "number": number,
            "seed": seed,
            **finite(found),
            "failed": failed,
            "seconds": round(time.perf_counter() - start, 1),
        }

    return kept(path_of(folder, name, number, seed), known_of(name, number, settings), made)


def chosen_by(rows: Sequence[Row]) -> dict[str, Row]:
    """The trial that each way of selection picks from those of one seed.

    ``training``: the best accuracy on held-out examples of the training environments. ``objective``: the smallest
    objective there. ``test``: the best accuracy in the test environment, which no user has. Numbers that are not finite
    come last, and the first of equals is taken.

    Args:
        rows: the trials of one algorithm and seed.

    Example:
        >>> trials = [{"val": 0.8, "objective": 1.0, "test": 0.1}, {"val": 0.7, "objective": None, "test": 0.6}]
        >>> {way: row["test"] for way, row in chosen_by(trials).items()}
        {'training': 0.1, 'objective': 0.1, 'test': 0.6}
    """
    return {
        "training": smallest(rows, "val", -1),
        "objective": smallest(rows, "objective"),
        "test": smallest(rows, "test", -1),
    }
