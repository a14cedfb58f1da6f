"""Time of the sinusoid trainability map: 30 × 30 cells, 500 iterations, 100 environments, one core.

    python benchmarks/trainability_map.py                  # a random subset of cells, extrapolated
    python benchmarks/trainability_map.py --full           # every cell, nothing extrapolated
    python benchmarks/trainability_map.py --workers 1 2    # a smaller map on one and on two cores, wall time

Cells that diverge stop early, so a map costs much less than cells × iterations. The subset is drawn over the whole
grid; the standard error of its mean is that of the extrapolation. The first steps of each α, after which they are
recorded, are measured apart and counted once per α. The line at α = 0 comes on top and is not counted.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.modules import MAML
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import BatchStream, CellTrainer, TrainabilityMap, parse_rates
from lightning_gp.trainability.recording import RECORD_AT

ITERATIONS = 500
TARGET_MINUTES = {"eager": 16.0, "compiled": 9.0}


def measure(form: str, cells: list[tuple[float, float]], grid: list[tuple[float, float]], clock: Any) -> dict[str, Any]:
    total, alphas = len(grid), {alpha for alpha, _ in grid}
    torch.manual_seed(0)
    start = clock()
    module = MAML(SinusoidMLP(), criterion=nn.functional.mse_loss, compile=form == "compiled")
    train = CellTrainer(module, BatchStream(SinusoidDataModule(environments_per_batch=100)))
    list(train.stream.first(ITERATIONS + 1))
    train(1e-3, 1e-2, 2)
    start_up = clock() - start
    preparations: dict[float, float] = {}
    seconds, steps = [], []
    for alpha, beta in cells:
        if alpha not in preparations and len(cells) < total:
            start = clock()
            train(alpha, 1e-3, RECORD_AT + 2)
            preparations[alpha] = clock() - start
        start = clock()
        steps.append(train(alpha, beta, ITERATIONS).iterations)
        seconds.append(clock() - start)
    preparation = statistics.fmean(preparations.values()) if preparations else 0.0
    estimate = (start_up + len(alphas) * preparation + total * statistics.fmean(seconds)) / 60
    error = 0.0 if len(cells) == total else total * statistics.stdev(seconds) / len(cells) ** 0.5 / 60
    return {
        "cells_measured": len(cells),
        "minutes": round(estimate, 2),
        "standard_error_minutes": round(error, 2),
        "target_minutes": TARGET_MINUTES[form],
        "start_up_s": round(start_up, 1),
        "preparation_per_alpha_s": round(preparation, 2),
        "ms_per_step": round(1e3 * sum(seconds) / max(1, sum(steps)), 3),
        "share_of_steps_computed": round(sum(steps) / (ITERATIONS * len(cells)), 3),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def sinusoid_module(seed: int) -> MAML:
    return MAML(SinusoidMLP(), criterion=nn.functional.mse_loss)


def sinusoid_data(seed: int) -> SinusoidDataModule:
    return SinusoidDataModule(environments_per_batch=100)


def spread(workers: int) -> dict[str, Any]:
    """Wall time of 6 × 15 cells, the start of the processes included."""
    alphas, betas = parse_rates("1e-4:9e-1:6"), parse_rates("1e-2:9e0:15")
    grid = TrainabilityMap(sinusoid_module, sinusoid_data, alphas, betas, ITERATIONS, zero_inner_lr=False)
    start = time.perf_counter()
    result = grid.run(workers=workers, progress=False)
    return {"cells": len(result.cells), "wall_s": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=list(TARGET_MINUTES), default=list(TARGET_MINUTES))
    parser.add_argument("--cells", type=int, default=45, help="random cells to measure (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="measure all 900")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time, for a busy machine")
    parser.add_argument("--workers", type=int, nargs="+", help="instead: wall time of a map with so many processes")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "trainability_map.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.workers:
        times = {str(workers): spread(workers) for workers in options.workers}
        rows = [[workers, *map(str, found.values())] for workers, found in times.items()]
        harness.print_table("Sinusoid map, 500 iterations, 100 environments", ["workers", "cells", "wall s"], rows)
        output = options.output.with_name("trainability_map_workers.json")
        harness.write_json(output, {"machine": harness.machine(), "workers": times})
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    grid = [(a, b) for a in parse_rates("1e-4:9e-1:30") for b in parse_rates("1e-2:9e0:30")]
    cells = grid if options.full else random.Random(0).sample(grid, options.cells)
    results = {form: measure(form, cells, grid, clock) for form in options.forms}
    rows = [[form, *(str(value) for value in result.values())] for form, result in results.items()]
    header = ["", *next(iter(results.values()))]
    harness.print_table("Sinusoid map, 30 × 30 cells, 500 iterations, 100 environments", header, rows)
    harness.write_json(options.output, {"machine": harness.machine(), "clock": clock.__name__, "forms": results})


if __name__ == "__main__":
    main()
