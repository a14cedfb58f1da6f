"""Weak scaling of training under Lightning: as many environments per process on one process and on two (gloo, CPU).

    python benchmarks/scaling.py           # writes docs/results/scaling.json, half a minute on an idle machine

Every process has one thread. A step goes from the start of one training batch to the start of the next: data, forward,
backward, the all-reduce of the gradient, Adam. Wall time tells what a user waits for on this machine, in its load; the
processor time of a process tells what distribution itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch.nn import functional as F

from lightning_gp import MAML
from lightning_gp._lightning import Callback, Trainer
from lightning_gp.datamodules import ClassImages, FewShotDataModule, SinusoidDataModule
from lightning_gp.networks import Conv4, SinusoidMLP

WARMUP = 3
"""Steps that are not counted: allocation, DDP's first buckets."""


class RandomImages(FewShotDataModule):
    """Noise in the shape of Omniglot: the time of a step does not depend on what images show."""

    def load_split(self, split: str) -> ClassImages:
        """20 classes of 20 images."""
        images = np.random.default_rng(0).integers(0, 256, (20 * 20, 28, 28), dtype=np.uint8)
        return ClassImages(images, np.full(20, 20), [str(i) for i in range(20)])


class Clock(Callback):
    """Wall and processor time at the start of every batch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Reads both."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())


KINDS = ("wall", "processor")
WORKLOADS = {
    "sinusoid": ("MAML, sinusoid MLP 40-40, 1 step", 100, 100),
    "conv4": ("MAML, Conv4-64 on 28×28, 5-way 1-shot, 15 queries, 1 step", 2, 8),
}
"""What it is, environments per process, steps."""


def build(workload: str, environments: int, steps: int) -> tuple[MAML, Any]:
    sizes = {"environments_per_batch": environments, "iterations_per_epoch": steps + WARMUP + 1, "val_episodes": 2}
    if workload == "sinusoid":
        return MAML(SinusoidMLP(), inner_lr=0.01, criterion=F.mse_loss), SinusoidDataModule(**sizes)
    return MAML(Conv4(5), inner_lr=0.4), RandomImages(ways=5, shots=1, queries=15, **sizes)


def run(workload: str, processes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, each, steps = WORKLOADS[workload]
    module, data = build(workload, each * processes, steps)
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return {
        "gradient_bytes": size,
        "wall": np.diff(clock.wall[WARMUP:]).tolist(),
        "processor": np.diff(clock.processor[WARMUP:]).tolist(),
    }


def start(workload: str, processes: int) -> list[dict[str, Any]]:
    """What every process of a run measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--workload", workload, "--processes", str(processes)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if processes > 1:
        shared |= {"NODE_RANK": "0", "WORLD_SIZE": str(processes)}
    ranks = [
        subprocess.Popen(
            command, env={**shared, **({"LOCAL_RANK": str(rank)} if processes > 1 else {})}, stdout=subprocess.PIPE
        )
        for rank in range(processes)
    ]
    outputs = [rank.communicate()[0].decode() for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"a process of {workload} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure(workload: str, rounds: int) -> dict[str, Any]:
    title, each, steps = WORKLOADS[workload]
    times: dict[int, dict[str, list[float]]] = {count: {kind: [] for kind in KINDS} for count in (1, 2)}
    size = 0
    for _ in range(rounds):
        for count, found in times.items():
            for rank in start(workload, count):
                size = rank["gradient_bytes"]
                for kind, seconds in found.items():
                    seconds += rank[kind]
    medians = {
        str(count): {f"{kind}_ms": round(1e3 * statistics.median(seconds), 3) for kind, seconds in found.items()}
        for count, found in times.items()
    }
    return {
        "title": title,
        "environments_per_process": each,
        "steps": steps * rounds,
        "gradient_bytes_per_step": size,
        "processes": medians,
        "efficiency": {kind: round(medians["1"][f"{kind}_ms"] / medians["2"][f"{kind}_ms"], 3) for kind in KINDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "scaling.json")
    parser.add_argument("--workload", choices=WORKLOADS, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.workload:
        print(json.dumps(run(arguments.workload, arguments.processes)))
        return
    torch.set_num_threads(1)
    results = {
        "command": "python benchmarks/scaling.py",
        "machine": {**harness.machine(), "load_before": round(os.getloadavg()[0], 1)},
        "backend": "gloo",
        "workloads": {workload: measure(workload, arguments.rounds) for workload in WORKLOADS},
    }
    harness.write_json(arguments.output, results)
    for workload in results["workloads"].values():
        rows = [[count, *map(str, found.values())] for count, found in workload["processes"].items()]
        harness.print_table(workload["title"], ["processes", "wall ms", "processor ms"], rows)
        print("efficiency", workload["efficiency"])


if __name__ == "__main__":
    main()
