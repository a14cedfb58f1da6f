"""IRM, ERM and the grayscale oracle on colored MNIST with the settings of the IRM paper.

    python -m lightning_gp.experiments.colored_mnist --data-dir data --restarts 10

prints a table of mean ± standard deviation over restarts and writes it, with each restart's numbers. Restarts are
spread over processes of one thread each. A finished restart is kept in ``--runs``: start the command again to go on.

[A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization, section 5.2 and the code
that belongs to it. The hyperparameters were selected by the authors *with* the test environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lightning_gp.datamodules.colored_mnist import ColoredMNISTDataModule
from lightning_gp.experiments.colored_mnist_gradient import FullBatchGradient
from lightning_gp.files import replacing
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.types import Examples


@dataclass(frozen=True)
class Settings:
    """Of one kind of run; the defaults are those of IRM in [A19], whose code gives ERM and the oracle their own."""

    penalty_weight: float = 91257.18613115903
    anneal_steps: int = 190
    grayscale: bool = False
    hidden: int = 390
    l2: float = 0.00110794568
    lr: float = 0.0004898536566546834
    steps: int = 501
    examples: int | None = None


KINDS = {
    "irm": Settings(),
    "erm": Settings(penalty_weight=0.0, anneal_steps=0, hidden=256, l2=0.001, lr=0.001),
    "oracle": Settings(
        penalty_weight=0.0,
        anneal_steps=0,
        grayscale=True,
        hidden=83,
        l2=0.0008602868865288383,
        lr=0.0028171488133821726,
        steps=101,
    ),
}
PUBLISHED = {
    "irm": "70.8 ± 0.9 / 66.9 ± 2.5",
    "erm": "87.4 ± 0.2 / 17.1 ± 0.6",
    "oracle": "73.5 ± 0.2 / 73.0 ± 0.4",
}
PROGRESS_EVERY = 50


def train(
    environments: Sequence[Examples], settings: Settings, seed: int, note: str = "", device: str = "cpu"
) -> ColoredMNISTMLP:
    """One restart: ``settings.steps`` full-batch Adam steps from the initialisation of ``seed``.

    Args:
        environments: x (K, channels, 14, 14) and y (K, 1) of each training environment.
        settings: see ``Settings``.
        seed: of the initialisation.
        note: printed in front of the progress; nothing is printed without.
        device: where to compute.
    """
    torch.manual_seed(seed)
    dtype = environments[0][0].dtype
    network = ColoredMNISTMLP(settings.hidden, channels=1 if settings.grayscale else 2).to(device, dtype)
    gradient = FullBatchGradient([(x.to(device), y.to(device)) for x, y in environments], settings.hidden, settings.l2)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    start = time.perf_counter()
    for step in range(settings.steps):
        weight = 1.0 if step < settings.anneal_steps else settings.penalty_weight
        gradient(network, weight, divisor=max(1.0, weight))
        optimizer.step()
        if note and (step + 1) % PROGRESS_EVERY == 0:
            print(f"{note}: step {step + 1}/{settings.steps}, {time.perf_counter() - start:.0f} s", flush=True)
    return network


@torch.no_grad()
def accuracy(network: ColoredMNISTMLP, environments: Sequence[Examples]) -> float:
    """Mean over environments of the share of examples whose logit has the right sign."""
    device = network.head.weight.device
    shares = [((network(x.to(device)) > 0) == (y.to(device) > 0.5)).double().mean().item() for x, y in environments]
    return statistics.fmean(shares)


def restart(kind: str, settings: Settings, seed: int, data_dir: str, runs: str, device: str = "cpu") -> dict[str, Any]:
    """Trains and evaluates one restart, or reads its result if it is there, with the same settings."""
    path = Path(runs) / f"{kind}_{seed}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["settings"] == asdict(settings):
            return kept
    torch.set_num_threads(1)
    data = ColoredMNISTDataModule(data_dir, grayscale=settings.grayscale, examples=settings.examples, seed=seed)
    environments = {split: list(data.environments(split).values()) for split in ("train", "test")}
    start = time.perf_counter()
    network = train(environments["train"], settings, seed, note=f"{kind} restart {seed}", device=device)
    result = {
        "kind": kind,
        "seed": seed,
        "train": accuracy(network, environments["train"]),
        "test": accuracy(network, environments["test"]),
        "seconds": round(time.perf_counter() - start, 1),
        "settings": asdict(settings),
    }
    _write(path, result)
    return result


def reproduce(
    kinds: Sequence[str] = ("irm", "erm", "oracle"),
    restarts: int = 10,
    workers: int | None = None,
    data_dir: str = "data",
    runs: str = "runs/colored_mnist",
    output: str | None = "docs/results/colored_mnist.json",
    device: str = "cpu",
    steps: int | None = None,
    examples: int | None = None,
) -> dict[str, Any]:
    """Runs what is missing and prints and writes the table.

    Args:
        kinds: of ``"irm"``, ``"erm"``, ``"oracle"``.
        restarts: seeds 0 … restarts − 1, each for the data and the initialisation.
        workers: processes; None for the number of cores.
        data_dir: folder that holds ``MNIST/raw``.
        runs: folder of the finished restarts.
        output: file for the table, or None.
        device: where to compute.
        steps: instead of the paper's 501, for a trial.
        examples: in each training environment, for a trial.

    Returns:
        By kind: mean and standard deviation (n − 1) of both accuracies in percent, the restarts and the settings; kinds
        that ``output`` holds already from another call are kept.

    Raises:
        ValueError: if a kind is unknown or a number below 1.
        FileNotFoundError: if MNIST is missing.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds={list(kinds)!r}: choose from {', '.join(KINDS)}.")
    workers = workers or os.cpu_count() or 1
    if restarts < 1 or workers < 1:
        raise ValueError(f"restarts={restarts} and workers={workers} must be at least 1.")
    ColoredMNISTDataModule(data_dir, examples=1).setup()  # missing files show here, not in every process
    changes: dict[str, Any] = {
        name: value for name, value in (("steps", steps), ("examples", examples)) if value is not None
    }
    settings = {kind: replace(KINDS[kind], **changes) for kind in kinds}
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(restart, kind, settings[kind], seed, data_dir, runs, device)
            for kind in kinds
            for seed in range(restarts)
        ]
        for job in as_completed(jobs):
            result = job.result()
            results[result["kind"]].append(result)
            print(
                f"{result['kind']} restart {result['seed']}: train {result['train']:.1%}, test {result['test']:.1%} "
                f"({sum(map(len, results.values()))} of {len(jobs)} done)",
                flush=True,
            )
    table = {kind: summary(sorted(rows, key=lambda row: row["seed"])) for kind, rows in results.items()}
    for kind, row in table.items():
        row["settings"] = asdict(settings[kind])
    if output is not None:
        if Path(output).is_file():  # kinds that were run by another command stay
            table = {**json.loads(Path(output).read_text()), **table}
        _write(Path(output), table)
    print_table(table)
    return table


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over restarts, in percent."""
    result: dict[str, Any] = {}
    for split in ("train", "test"):
        values = [100 * row[split] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        result[split] = {"mean": statistics.fmean(values), "std": spread, "restarts": values}
    return {**result, "seconds": statistics.fmean(row["seconds"] for row in rows)}


def print_table(table: dict[str, Any]) -> None:
    """One line per kind, with the paper's numbers beside ours."""
    print(f"\n{'':8}{'train %':>16}{'test %':>16}{'restarts':>10}{'s each':>8}   paper: train / test")
    for kind, row in table.items():
        cells = []
        for split in ("train", "test"):
            spread = row[split]["std"]
            cells.append(f"{row[split]['mean']:.1f}" + ("" if spread is None else f" ± {spread:.1f}"))
        count = len(row["test"]["restarts"])
        print(f"{kind:8}{cells[0]:>16}{cells[1]:>16}{count:>10}{row['seconds']:>8.0f}   {PUBLISHED[kind]}")


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Colored MNIST with the settings of the IRM paper.")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--workers", type=int, help="processes of one thread each; default: the number of cores")
    parser.add_argument("--data-dir", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--runs", default="runs/colored_mnist", help="folder of finished restarts")
    parser.add_argument("--output", default="docs/results/colored_mnist.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="instead of 501, for a trial")
    parser.add_argument("--examples", type=int, help="in each training environment, for a trial")
    reproduce(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
