"""A trainability map on a Dask cluster of local processes that is killed and goes on: is its file that of a serial run?

pip install dask distributed
python benchmarks/map_on_dask.py
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import torch
from torch import nn

from lightning_gp import MAML
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import TrainabilityMap, TrainabilityResult, parse_rates

KILLED_AT = (0.25, 0.6)  # of the cells


def module(seed: int) -> MAML:
    return MAML(SinusoidMLP(), criterion=nn.functional.mse_loss)


def data(seed: int) -> SinusoidDataModule:
    return SinusoidDataModule(environments_per_batch=10, seed=seed)


def grid() -> TrainabilityMap:
    return TrainabilityMap(module, data, parse_rates("1e-4:9e-1:8"), parse_rates("1e-2:9e0:8"), 100, seeds=(0, 1))


def on_dask(path: Path) -> None:
    from dask.distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        grid().run(path, executor=client.get_executor(), progress=False)


def killed(path: Path, cells: int) -> int:
    """Starts the cluster, kills all of its processes when the file has so many cells, and counts what is left."""
    process = subprocess.Popen([sys.executable, __file__, "--cluster", str(path)], start_new_session=True)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") <= cells):
        time.sleep(0.01)
    if process.poll() is not None:
        raise RuntimeError("The cluster ended before it was killed; kill it earlier.")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(TrainabilityResult.load(path).cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, help="only run the cluster, into this file")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "map_on_dask.json")
    options = parser.parse_args()
    if options.cluster:
        on_dask(options.cluster)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        serial, path = Path(folder) / "serial.jsonl", Path(folder) / "dask.jsonl"
        total = len(grid().run(serial, progress=False).cells)
        kept = [killed(path, int(share * total)) for share in KILLED_AT]
        subprocess.run([sys.executable, __file__, "--cluster", str(path)], check=True)
        same = path.read_bytes() == serial.read_bytes()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = {"cells": total, "workers": 2, "finished_when_killed": kept, "file_of_the_serial_run": same}
    harness.write_json(
        options.output,
        {"command": "python benchmarks/map_on_dask.py", "machine": harness.machine(), **found, "sha256": digest},
    )
    print(found)
    if not same:
        raise SystemExit("The file differs from that of the serial run.")


if __name__ == "__main__":
    main()
