"""One trial of the comparison of meta-learning algorithms: a problem, an algorithm, an inner rate, a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.datamodules.episodes.base import EpisodeDataModule
from lightning_gp.datamodules.episodes.sinusoid import SinusoidDataModule
from lightning_gp.datamodules.images.omniglot import OmniglotDataModule
from lightning_gp.environments import as_batches
from lightning_gp.modules.implicit_maml import ImplicitMAML
from lightning_gp.modules.lil import LIL
from lightning_gp.modules.maml import MAML
from lightning_gp.modules.maml_variants import ANIL, BOIL, FOMAML, MetaSGD
from lightning_gp.modules.reptile import Reptile
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.runs.folders import kept
from lightning_gp.runs.memory import peak_tensor_bytes
from lightning_gp.runs.training import quiet_trainer
from lightning_gp.runs.trials import finite

ALGORITHMS: dict[str, Callable[..., MAML]] = {
    "MAML": MAML,
    "FOMAML": FOMAML,
    "ANIL": ANIL,
    "BOIL": BOIL,
    "Reptile": Reptile,
    "ImplicitMAML": ImplicitMAML,
    "MetaSGD": MetaSGD,
    "MAML + LIL": LIL,
}


@dataclass(frozen=True)
class Settings:
    """Of every trial, whatever its algorithm.

    Attributes:
        iterations: outer steps of Adam on sinusoids.
        omniglot_iterations: outer steps on Omniglot.
        environments: in a meta-batch of sinusoids, 10 support and 10 query points each.
        omniglot_environments: in a meta-batch of Omniglot, 5-way 1-shot.
        queries: query images per class.
        channels: of Conv4.
        inner_steps: S, of all algorithms.
        outer_lr: of Adam.
        val_episodes: by which the inner rate is chosen.
        test_episodes: on which the chosen one is measured.
    """

    iterations: int = 2000
    omniglot_iterations: int = 1000
    environments: int = 25
    omniglot_environments: int = 4
    queries: int = 15
    channels: int = 32
    inner_steps: int = 3
    outer_lr: float = 1e-3
    val_episodes: int = 100
    test_episodes: int = 400


QUICK: dict[str, Any] = {
    "iterations": 300,
    "omniglot_iterations": 60,
    "queries": 5,
    "channels": 16,
    "val_episodes": 50,
    "test_episodes": 200,
}


class Problem(NamedTuple):
    """A problem and its search.

    Attributes:
        title: for tables and pictures.
        metric: what is reported.
        sign: 1 if small values of it are good, -1 if large ones are.
        rates: α, of which each algorithm is tried with every one.
    """

    title: str
    metric: str
    sign: int
    rates: tuple[float, ...]


PROBLEMS = {
    "sinusoid": Problem("Sinusoids", "loss", 1, (0.01, 0.03, 0.1)),
    "omniglot": Problem("Omniglot, 5-way 1-shot", "accuracy", -1, (0.1, 0.4)),
}


def data_of(problem: str, seed: int, settings: Settings, root: str) -> EpisodeDataModule:
    """The episodes of a seed, the same for all algorithms and rates."""
    lengths: dict[str, Any] = {"val_episodes": settings.val_episodes, "test_episodes": settings.test_episodes}
    if problem == "sinusoid":
        return SinusoidDataModule(
            environments_per_batch=settings.environments, iterations_per_epoch=settings.iterations, seed=seed, **lengths
        )
    return OmniglotDataModule(
        root,
        queries=settings.queries,
        environments_per_batch=settings.omniglot_environments,
        iterations_per_epoch=settings.omniglot_iterations,
        seed=seed,
        **lengths,
    )


def build(problem: str, algorithm: str, rate: float, settings: Settings) -> MAML:
    """The module of a trial, all else at the algorithm's defaults."""
    own: dict[str, Any] = {"criterion": F.mse_loss} if problem == "sinusoid" else {}
    if problem == "sinusoid" and algorithm == "MAML + LIL":
        own["divergence"] = "gaussian"
    network: nn.Module = SinusoidMLP() if problem == "sinusoid" else Conv4(5, settings.channels, downsample="stride")
    optimizer = partial(torch.optim.Adam, lr=settings.outer_lr)
    made = ALGORITHMS[algorithm]
    return made(network, inner_lr=rate, inner_steps=settings.inner_steps, optimizer=optimizer, **own)


def path_of(folder: Path, problem: str, algorithm: str, rate: float, seed: int) -> Path:
    """Where the result of a trial is kept."""
    name = algorithm.lower().replace(" + ", "-")
    return folder / "trials" / f"{problem}-{name}-{rate:g}-seed{seed}.json"


def trial(
    problem: str, algorithm: str, rate: float, seed: int, settings: Settings, root: str, folder: Path
) -> dict[str, Any]:
    """Trains and evaluates one trial, or reads its result if it is there.

    Args:
        problem: of ``PROBLEMS``.
        algorithm: of ``ALGORITHMS``.
        rate: α; where rates are learned, their start.
        seed: of weights and episodes.
        settings: see ``Settings``.
        root: folder of the Omniglot data.
        folder: of the results.

    Returns:
        ``val`` and ``test``, the problem's metric on the two sets of episodes, ``test_ci95``, half the width of the
        95 % interval over test episodes, ``memory``, bytes of the tensors of one step at their peak
        (``peak_tensor_bytes``), and per outer step of the training ``seconds`` on the clock and ``processor_seconds``.
        Numbers that are not finite are None.
    """

    def made() -> dict[str, Any]:
        torch.set_num_threads(1)
        data = data_of(problem, seed, settings, root)
        pl.seed_everything(seed, verbose=False)
        module = build(problem, algorithm, rate, settings)
        steps = settings.iterations if problem == "sinusoid" else settings.omniglot_iterations
        metric = PROBLEMS[problem].metric
        memory = _memory(module, data)
        trainer = quiet_trainer("cpu", max_steps=steps, check_val_every_n_epoch=2)  # not in the one epoch
        start, processor = time.perf_counter(), time.process_time()
        trainer.fit(module, data)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor
        (val,) = trainer.validate(module, data, verbose=False)
        (test,) = trainer.test(module, data, verbose=False)
        keys = {"test": f"test/{metric}", "test_ci95": f"test/{metric}_ci95"}
        return {
            "problem": problem,
            "algorithm": algorithm,
            "rate": rate,
            "seed": seed,
            **finite({"val": val[f"val/{metric}"], **{name: test[key] for name, key in keys.items()}}),
            "memory": memory,
            "seconds": round(seconds / steps, 5),
            "processor_seconds": round(processor_seconds / steps, 5),
        }

    return kept(path_of(folder, problem, algorithm, rate, seed), asdict(settings), made)


def _memory(module: MAML, data: EpisodeDataModule) -> int:
    """Of one step on the first training batch; a step before it decides what is decided once."""
    data.prepare_data()
    data.setup("fit")
    batch = as_batches(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    module.training_loss(batch)
    found = peak_tensor_bytes(lambda: module.training_loss(batch).backward())
    module.zero_grad()
    return found
