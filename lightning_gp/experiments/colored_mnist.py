"""IRM, ERM and the grayscale oracle on colored MNIST with the settings of the IRM paper.

[A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization, section 5.2 and the code
that belongs to it. The hyperparameters were selected by the authors *with* the test environment.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.checks import choice, optional_whole
from lightning_gp.datamodules import ColoredMNISTDataModule, NamedEnvironmentsDataModule
from lightning_gp.modules.irm import IRMv1
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.runs.folders import check_settings, kept, read_json, same, write_json
from lightning_gp.runs.summaries import as_text, over_seeds
from lightning_gp.runs.training import Progress, quiet_trainer
from lightning_gp.trainability.grid import check_seeds
from lightning_gp.types import Examples

Kind = Literal["irm", "erm", "oracle"]


@dataclass(frozen=True)
class Settings:
    """Of one kind of run; the defaults are those of IRM in [A19], whose code gives ERM and the oracle their own."""

    penalty_weight: float = 91257.18613115903
    anneal_steps: int = 190
    grayscale: bool = False
    hidden: int = 390
    l2: float = 0.00110794568
    lr: float = 0.0004898536566546834
    iterations: int = 501
    examples: int | None = None


KINDS: dict[Kind, Settings] = {
    "irm": Settings(),
    "erm": Settings(penalty_weight=0.0, anneal_steps=0, hidden=256, l2=0.001, lr=0.001),
    "oracle": Settings(
        penalty_weight=0.0,
        anneal_steps=0,
        grayscale=True,
        hidden=83,
        l2=0.0008602868865288383,
        lr=0.0028171488133821726,
        iterations=101,
    ),
}
PUBLISHED = {
    "irm": "70.8 ± 0.9 / 66.9 ± 2.5",
    "erm": "87.4 ± 0.2 / 17.1 ± 0.6",
    "oracle": "73.5 ± 0.2 / 73.0 ± 0.4",
}
PROGRESS_EVERY = 50


def train(
    data: NamedEnvironmentsDataModule, settings: Settings, seed: int, note: str = "", device: str = "cpu"
) -> IRMv1:
    """One restart: full-batch Adam steps of ``IRMv1`` from the initialisation of ``seed``.

    Args:
        data: its training environments are all that is seen.
        settings: see ``Settings``.
        seed: of the initialisation.
        note: printed in front of the progress; nothing is printed without.
        device: where to compute.
    """
    torch.manual_seed(seed)
    module = IRMv1(
        ColoredMNISTMLP(settings.hidden, channels=1 if settings.grayscale else 2),
        settings.penalty_weight,
        settings.anneal_steps,
        rescale_loss=True,
        l2=settings.l2,
        criterion=F.binary_cross_entropy_with_logits,
        optimizer=partial(torch.optim.Adam, lr=settings.lr),
    )
    shown = Progress(note, every=PROGRESS_EVERY)
    quiet_trainer(device, max_steps=settings.iterations, limit_val_batches=0, callbacks=[shown]).fit(module, data)
    return module


@torch.no_grad()
def accuracy(network: nn.Module, environments: Mapping[str, Examples]) -> float:
    """Mean over environments of the share of examples whose logit has the right sign."""
    device = next(network.parameters()).device
    pairs = [(network(x.to(device)), y.to(device)) for x, y in environments.values()]
    return statistics.fmean(((logits > 0) == (y > 0.5)).double().mean().item() for logits, y in pairs)


def restart(kind: Kind, settings: Settings, seed: int, root: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Trains and evaluates one restart, or reads its result if it is there."""

    def made() -> dict[str, Any]:
        torch.set_num_threads(1)
        data = ColoredMNISTDataModule(
            root, grayscale=settings.grayscale, examples=settings.examples, seed=seed, steps_per_epoch=PROGRESS_EVERY
        )
        start = time.perf_counter()
        module = train(data, settings, seed, f"{kind} restart {seed}", device)
        shares = {split: accuracy(module.network, data.environments(split)) for split in ("train", "test")}
        return {"kind": kind, "seed": seed, **shares, "seconds": round(time.perf_counter() - start, 1)}

    return kept(_path(folder, kind, seed), asdict(settings), made)


def _path(folder: Path, kind: Kind, seed: int) -> Path:
    return folder / "restarts" / f"{kind}_{seed}.json"


def colored_mnist(
    root: str = "data",
    output: Path = Path("runs/colored_mnist"),
    kinds: Sequence[Kind] = ("irm", "erm", "oracle"),
    seeds: Sequence[int] = tuple(range(10)),
    workers: int | None = None,
    device: str = "cpu",
    iterations: int | None = None,
    examples: int | None = None,
) -> dict[str, Any]:
    """Colored MNIST with the settings of the IRM paper: a table of mean ± standard deviation over restarts.

    Restarts are spread over processes of one thread each. A finished restart is kept: start the command again to go on.

    Args:
        root: folder that holds MNIST/raw.
        output: folder for colored_mnist.json and the finished restarts.
        kinds: irm, erm, oracle.
        seeds: one restart each, of the data and the initialisation; one number N stands for 0 … N − 1.
        workers: processes; null for the number of cores.
        device: where to compute.
        iterations: instead of the paper's 501, for a trial.
        examples: in each training environment, for a trial.

    Returns:
        By kind: mean and standard deviation (n − 1) of both accuracies in percent, the restarts and the settings; kinds
        that the table holds already from another call are kept.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a kind is unknown, a number out of range, or the folder holds results of other settings.
        FileNotFoundError: if MNIST is missing.
    """
    for kind in kinds:
        choice(tuple(KINDS), kinds=kind)
    check_seeds(seeds)
    changes: dict[str, Any] = {"iterations": iterations, "examples": examples}
    optional_whole(1, workers=workers, **changes)
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = {kind: replace(KINDS[kind], **changes) for kind in kinds}
    path = output / "colored_mnist.json"
    before = read_json(path) if path.is_file() else {}
    for kind in kinds:
        same(path, before[kind]["settings"] if kind in before else asdict(settings[kind]), asdict(settings[kind]))
        for seed in seeds:
            check_settings(_path(output, kind, seed), asdict(settings[kind]))
    ColoredMNISTDataModule(root, examples=1).setup()  # missing files show here, not in every process
    results: dict[Kind, dict[int, Any]] = {kind: {} for kind in kinds}
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        arguments = [(kind, settings[kind], seed, root, output, device) for kind in kinds for seed in seeds]
        jobs = [pool.submit(restart, *each) for each in arguments]
        for done, job in enumerate(as_completed(jobs), 1):
            result = job.result()
            results[result["kind"]][result["seed"]] = result
            shares = f"train {result['train']:.1%}, test {result['test']:.1%}"
            print(f"{result['kind']} restart {result['seed']}: {shares} ({done} of {len(jobs)} done)", flush=True)
    new: dict[str, Any] = {
        kind: _summary([rows[seed] for seed in seeds], settings[kind]) for kind, rows in results.items()
    }
    table = {**before, **new}
    write_json(path, table)
    _print(table)
    return table


def _summary(rows: Sequence[Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    shares = {split: over_seeds([row[split] for row in rows], 100) for split in ("train", "test")}
    seconds = statistics.fmean(row["seconds"] for row in rows)
    return {**shares, "seconds": seconds, "settings": asdict(settings)}


def _print(table: Mapping[str, Any]) -> None:
    """One line per kind, with the paper's numbers beside ours."""
    print(f"\n{'':8}{'train %':>16}{'test %':>16}{'restarts':>10}{'s each':>8}   paper: train / test")
    for kind, row in table.items():
        train, test = (as_text(row[split]["mean"], row[split]["std"], 1) for split in ("train", "test"))
        count = len(row["test"]["seeds"])
        print(f"{kind:8}{train:>16}{test:>16}{count:>10}{row['seconds']:>8.0f}   {PUBLISHED[kind]}")
