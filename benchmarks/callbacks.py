"""What the callbacks cost: their share of an epoch of MAML on Omniglot, each with its default settings.

    python benchmarks/callbacks.py [--data ../shared/data/omniglot] [--output docs/results/callbacks.json]

Conv4-64, 5-way 1-shot, 32 environments per batch, one thread, CPU time. A few steps of ``Trainer.fit`` are timed
without callbacks; then every callback measures once, cold, and once more, as in later epochs. The share is the time of
one measurement over that of 500 steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from harness import RESULTS, print_table, write_json

from lightning_gp import MAML, callbacks
from lightning_gp.callbacks import Probe
from lightning_gp.datamodules import OmniglotDataModule
from lightning_gp.networks import Conv4

EPOCH = 500
NAMES = (
    "GradientNorm",
    "CosineSimilarity",
    "PhaseAmplitudeConsistency",
    "HessianEigenvalues",
    "LearningRateBounds",
    "CriticalLearningRate",
    "GradientNoise",
    "UpdateStatistics",
)


class Steps(pl.Callback):
    """CPU seconds of each training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        """A step begins."""
        self.begin = time.process_time()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """A step ends."""
        self.seconds.append(time.process_time() - self.begin)


def timed(probe: Probe) -> list[float]:
    """CPU seconds of each measurement of a callback, filled while it runs."""
    seconds: list[float] = []
    run = probe.run

    def measured(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        begin = time.process_time()
        run(trainer, module)
        seconds.append(time.process_time() - begin)

    probe.run = measured  # type: ignore[method-assign]
    return seconds


def fit(data: str, steps: int, attached: list[pl.Callback]) -> None:
    pl.seed_everything(0, verbose=False)
    module = MAML(Conv4(5), inner_lr=0.4)
    sizes = {"ways": 5, "shots": 1, "queries": 15, "environments_per_batch": 32, "iterations_per_epoch": EPOCH}
    pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=attached,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, OmniglotDataModule(data, **sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/omniglot")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--output", type=Path, default=RESULTS / "callbacks.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = Steps()
    fit(arguments.data, arguments.steps, [steps])
    step = statistics.median(steps.seconds[1:])
    rows, found, total = [], {}, 0.0
    for name in arguments.only:
        probe = getattr(callbacks, name)(every_n_steps=2)
        seconds = timed(probe)
        fit(arguments.data, 4, [probe])
        cold, warm = seconds[0], seconds[-1]
        found[name] = {"cold_seconds": cold, "warm_seconds": warm, "share": cold / (EPOCH * step)}
        total += cold
        rows.append([name, f"{cold:.1f}", f"{warm:.1f}", f"{100 * cold / (EPOCH * step):.2f} %"])
        print(*rows[-1], flush=True)
    rows.append(["all", f"{total:.1f}", "", f"{100 * total / (EPOCH * step):.2f} %"])
    print_table(f"a step takes {step:.2f} s", ["callback", "first, s", "later, s", f"share of {EPOCH} steps"], rows)
    write_json(arguments.output, {"step_seconds": step, "callbacks": found, "share_of_all": total / (EPOCH * step)})


if __name__ == "__main__":
    main()
