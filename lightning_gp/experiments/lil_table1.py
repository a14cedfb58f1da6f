"""Accuracy of θ_0 after LIL pre-training against a random one, on Omniglot [L22, Table 1].

    lightning-gp reproduce lil-table1 --root data

No query label is read before the test. "Adapted" is the accuracy after the inner loop from θ_0, "unadapted" that of θ_0
itself, which is at chance for any θ_0, since classes are numbered at random in every episode. The paper's caption says
"without task-adaptation" of numbers well above chance, and its text speaks of the inner loop's effect: these are the
adapted ones. Both initialisations start from the same random weights; a finished run is kept and a killed one goes on.

[L22] "Enforcing zero-Hessian in meta-learning", 2022 (later published as SHOT, NeurIPS 2023); the paper's images are
mini-ImageNet and Cars, and it trained Conv4-64 with max-pooling for 30,000 iterations at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_gp._lightning import pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.experiments.runs import evaluated, same_settings, train, write_json
from lightning_gp.modules.lil_pretraining import LILPretraining
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.pretrained import load_pretrained

EPOCH = 100
"""Iterations between two checkpoints, which are also validations."""


@dataclass(frozen=True)
class Settings:
    """Of every run. Strided convolutions, which are usual on Omniglot, make it fit a processor."""

    iterations: int = 500
    ways: int = 5
    queries: int = 15
    channels: int = 64
    downsample: str = "stride"
    inner_lr: float = 0.5
    inner_steps: int = 3
    momentum: float = 0.999
    lr: float = 0.001
    environments: int = 4
    val_episodes: int = 40
    test_episodes: int = 300


def run(root: str, shots: int, seed: int, settings: Settings, folder: Path, accelerator: str) -> dict[str, Any]:
    """Trains and tests one seed, or reads its result."""
    same_settings(folder, asdict(settings))
    path = folder / "result.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    start = time.perf_counter()
    data = OmniglotDataModule(
        root,
        settings.ways,
        shots,
        settings.queries,
        environments_per_batch=settings.environments,
        iterations_per_epoch=min(EPOCH, settings.iterations),
        val_episodes=settings.val_episodes,
        test_episodes=settings.test_episodes,
        seed=seed,
    )

    def network() -> Conv4:
        pl.seed_everything(seed, verbose=False)
        return Conv4(settings.ways, settings.channels, downsample=settings.downsample)  # type: ignore[arg-type]

    def tested(initial: torch.nn.Module) -> dict[str, float]:
        return evaluated(MAML(initial, settings.inner_lr, settings.inner_steps), data, accelerator)

    pretraining = LILPretraining(
        network(),
        settings.inner_lr,
        settings.inner_steps,
        settings.momentum,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=settings.lr),
    )
    note = f"{shots}-shot, seed {seed}"
    checkpoint = train(pretraining, data, folder, settings.iterations, note, best=False, accelerator=accelerator)
    result = {
        "shots": shots,
        "seed": seed,
        "random": tested(network()),
        "lil": tested(load_pretrained(network(), checkpoint)),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(path, result)
    return result


def reproduce(
    root: str = "data",
    shots: Sequence[int] = (1, 5),
    seeds: int = 3,
    settings: Settings | None = None,
    runs: str | Path = "runs/lil_table1",
    output: str | Path = "runs/lil_table1/lil_table1.json",
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Runs what is missing, prints and writes the table.

    Args:
        root: folder of the Omniglot data; see ``OmniglotDataModule``.
        shots: K of each row.
        seeds: runs per row, of weights and episodes.
        settings: see ``Settings``.
        runs: folder of the runs.
        output: file for the table.
        accelerator: of the Trainer.

    Returns:
        What is written: settings, the table in percent, and every run.

    Raises:
        ValueError: if a number is below 1, or ``runs`` holds runs with other settings.
        FileNotFoundError: if there are no data.
    """
    settings = settings or Settings()
    if min(seeds, settings.iterations, *shots) < 1:
        raise ValueError(f"seeds={seeds}, iterations={settings.iterations} and shots={list(shots)} must be at least 1.")
    keep_freed_memory()
    OmniglotDataModule(root, settings.ways, max(shots), settings.queries).prepare_data()  # missing files show here
    results = [
        run(root, k, seed, settings, Path(runs) / f"{k}-shot" / f"seed_{seed}", accelerator)
        for seed in range(seeds)
        for k in shots
    ]
    steps = settings.inner_steps
    table = {
        f"{k}-shot": {
            f"{start}, {kind}": _summary([r[start][f"accuracy_step_{step}"] for r in results if r["shots"] == k])
            for start in ("random", "lil")
            for kind, step in (("unadapted", 0), ("adapted", steps))
        }
        for k in shots
    }
    summary = {
        "command": f"lightning-gp reproduce lil-table1 --root <omniglot> --iterations {settings.iterations} "
        f"--seeds {seeds} --shots {' '.join(map(str, shots))}",
        "settings": asdict(settings),
        "accuracy_percent": table,
        "runs": results,
        "torch": torch.__version__,
    }
    write_json(Path(output), summary)
    _print(table)
    print(f"Table: {output}")
    return summary


def _summary(shares: Sequence[float]) -> dict[str, Any]:
    percent = [100 * share for share in shares]
    spread = statistics.stdev(percent) if len(percent) > 1 else None
    return {"mean": statistics.fmean(percent), "std": spread, "seeds": percent}


def _print(table: dict[str, dict[str, dict[str, Any]]]) -> None:
    columns = list(next(iter(table.values())))
    print(
        f"\nAccuracy of θ_0 in percent, mean ± standard deviation over seeds\n{'':8}"
        + "".join(f"{c:>20}" for c in columns)
    )
    for name, row in table.items():
        cells = [f"{c['mean']:.2f}" + ("" if c["std"] is None else f" ± {c['std']:.2f}") for c in row.values()]
        print(f"{name:8}" + "".join(f"{cell:>20}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("lightning-gp reproduce lil-table1", description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=Settings.iterations, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per row (default: %(default)s)")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5], help="one row each (default: 1 5)")
    parser.add_argument("--downsample", default=Settings.downsample, choices=["stride", "max_pool"])
    parser.add_argument("--runs", default="runs/lil_table1", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--output", default="runs/lil_table1/lil_table1.json", help="(default: %(default)s)")
    parser.add_argument("--accelerator", default="auto", help="of the Trainer (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a step is too small to gain from more
    settings = Settings(iterations=options.iterations, downsample=options.downsample)
    reproduce(options.root, options.shots, options.seeds, settings, options.runs, options.output, options.accelerator)


if __name__ == "__main__":
    main()
