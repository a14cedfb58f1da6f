"""Accuracy of θ_0 after LIL pre-training against a random one, on Omniglot [L22, Table 1].

[L22] "Enforcing zero-Hessian in meta-learning", 2022 (later published as SHOT, NeurIPS 2023); the paper's images are
mini-ImageNet and Cars, and it trained Conv4-64 with max-pooling for 30,000 iterations at most.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_gp._lightning import pl
from lightning_gp.checks import whole
from lightning_gp.datamodules import OmniglotDataModule
from lightning_gp.modules.lil_pretraining import LILPretraining
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.pretrained import load_pretrained
from lightning_gp.runs.folders import kept, same_settings, write_json
from lightning_gp.runs.summaries import as_text, over_seeds
from lightning_gp.runs.training import evaluated, train
from lightning_gp.trainability.grid import check_seeds

EPOCH = 100
"""Iterations between two checkpoints, which are also validations."""


@dataclass(frozen=True)
class Settings:
    """Of every run. Strided convolutions, which are usual on Omniglot, make it fit a processor."""

    iterations: int = 500
    ways: int = 5
    queries: int = 15
    channels: int = 64
    downsample: Literal["stride", "max_pool"] = "stride"
    inner_lr: float = 0.5
    inner_steps: int = 3
    momentum: float = 0.999
    lr: float = 0.001
    environments: int = 4
    val_episodes: int = 40
    test_episodes: int = 300


SETTINGS = Settings()


def run(root: str, shots: int, seed: int, settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    """Trains and tests one seed."""
    same_settings(folder, asdict(settings))
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
        return Conv4(settings.ways, settings.channels, downsample=settings.downsample)

    def tested(initial: torch.nn.Module) -> dict[str, float]:
        return evaluated(MAML(initial, settings.inner_lr, settings.inner_steps), data, device)

    pretraining = LILPretraining(
        network(),
        settings.inner_lr,
        settings.inner_steps,
        settings.momentum,
        optimizer=partial(torch.optim.Adam, lr=settings.lr),
    )
    note = f"{shots}-shot, seed {seed}"
    checkpoint = train(pretraining, data, folder, settings.iterations, note, best=False, device=device)
    result = {"random": tested(network()), "lil": tested(load_pretrained(network(), checkpoint))}
    return {"shots": shots, "seed": seed, **result, "seconds": round(time.perf_counter() - start, 1)}


def lil_table1(
    root: str = "data",
    shots: Sequence[int] = (1, 5),
    seeds: Sequence[int] = (0, 1, 2),
    settings: Settings = SETTINGS,
    output: Path = Path("runs/lil_table1"),
    device: str = "auto",
) -> dict[str, Any]:
    """Accuracy of θ_0 after LIL pre-training against a random one, on Omniglot [L22, Table 1].

    No query label is read before the test. "Adapted" is the accuracy after the inner loop from θ_0, "unadapted" that of
    θ_0 itself, which is at chance for any θ_0, since classes are numbered at random in every episode. The paper's
    caption says "without task-adaptation" of numbers well above chance, and its text speaks of the inner loop's effect:
    these are the adapted ones. Both initialisations start from the same random weights; a finished run is kept and a
    killed one goes on.

    Args:
        root: folder of the Omniglot data.
        shots: K of each row.
        seeds: runs per row, of weights and episodes; one number N stands for 0 … N − 1.
        settings: of every run.
        output: folder of the runs and of lil_table1.json.
        device: where to compute.

    Returns:
        What is written: settings, the table in percent, and every run.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if one is below 1, or ``output`` holds runs with other settings.
        FileNotFoundError: if there are no data.
    """
    check_seeds(seeds)
    whole(1, iterations=settings.iterations, shots=min(shots, default=0))
    OmniglotDataModule(root, settings.ways, max(shots), settings.queries).prepare_data()  # missing files show here
    results = []
    for seed, k in ((seed, k) for seed in seeds for k in shots):
        folder = output / f"{k}-shot" / f"seed_{seed}"
        made = partial(run, root, k, seed, settings, folder, device)
        results.append(kept(folder / "result.json", asdict(settings), made))
    table = {
        f"{k}-shot": {
            f"{start}, {kind}": over_seeds([r[start][f"accuracy_step_{step}"] for r in results if r["shots"] == k], 100)
            for start in ("random", "lil")
            for kind, step in (("unadapted", 0), ("adapted", settings.inner_steps))
        }
        for k in shots
    }
    summary = {
        "command": f"lightning-gp reproduce lil-table1 --root <omniglot> --iterations {settings.iterations} "
        f"--seeds [{','.join(map(str, seeds))}] --shots {' '.join(map(str, shots))}",
        "settings": asdict(settings),
        "accuracy_percent": table,
        "runs": [{key: value for key, value in result.items() if key != "settings"} for result in results],
        "torch": torch.__version__,
    }
    write_json(output / "lil_table1.json", summary)
    _print(table)
    print(f"Table: {output / 'lil_table1.json'}")
    return summary


def _print(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    columns = next(iter(table.values()))
    print("\nAccuracy of θ_0 in percent, mean ± standard deviation over seeds")
    print(f"{'':8}" + "".join(f"{column:>20}" for column in columns))
    for name, row in table.items():
        print(f"{name:8}" + "".join(f"{as_text(cell['mean'], cell['std'], 2):>20}" for cell in row.values()))
