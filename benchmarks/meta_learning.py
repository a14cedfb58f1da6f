"""Outer steps of MAML against learn2learn and higher: equal gradients first, then time and peak memory.

    python benchmarks/meta_learning.py                      # everything; writes docs/results/meta_learning.json
    python benchmarks/meta_learning.py --only sinusoid fomaml --rounds 15 --no-compile

Every contender starts from the same parameters and sees the same episodes, in one process, on one thread, taking turns.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from peers import Accumulate, Criterion, func_maml, higher_maml, learn2learn_maml
from torch import nn

from lightning_gp import FOMAML, MAML, Environments
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.networks import Conv4, SinusoidMLP

TOLERANCE = 1e-8  # relative, float64
EAGER, COMPILED, RECOMPUTED = "ours", "ours, compile=True", "ours, recompute=True"
OURS: dict[str, dict[str, Any]] = {EAGER: {}, COMPILED: {"compile": True}, RECOMPUTED: {"recompute": True}}
PEERS = {"learn2learn": learn2learn_maml, "higher": higher_maml}
BY_HAND, BY_HAND_COMPILED = "vmap(grad)", "vmap(grad), compiled"
HANDS = {BY_HAND: func_maml, BY_HAND_COMPILED: partial(func_maml, compile=True)}


@dataclass(frozen=True)
class Workload:
    """One line of the benchmark; ``targets`` are the least speed-ups over learn2learn of the forms of ours."""

    title: str
    network: Callable[[], nn.Module]
    episodes: Callable[[], Environments]
    criterion: Criterion
    inner_lr: float
    outer: Callable[..., torch.optim.Optimizer]
    rounds: int
    targets: Mapping[str, float]
    inner_steps: int = 1
    first_order: bool = False
    burst: int = 1
    forms: tuple[str, ...] = field(default=(EAGER, COMPILED))
    hands: tuple[str, ...] = ()


def sinusoids(count: int, points: int = 10) -> Environments:
    amplitude, phase = 0.1 + 4.9 * torch.rand(count, 1, 1), math.pi * torch.rand(count, 1, 1)
    x = 10 * torch.rand(count, 2 * points, 1) - 5
    y = amplitude * torch.sin(x - phase)
    return Environments((x[:, :points], y[:, :points]), (x[:, points:], y[:, points:]))


def images(count: int, ways: int = 5, shots: int = 1, queries: int = 15, size: int = 28) -> Environments:
    """Random pixels: the arithmetic does not depend on what is in the picture."""

    def examples(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(ways).repeat(per_class).expand(count, -1)
        return torch.rand(count, ways * per_class, 1, size, size), y.contiguous()

    return Environments(examples(shots), examples(queries))


_sinusoid = partial(
    Workload,
    network=SinusoidMLP,
    criterion=F.mse_loss,
    inner_lr=0.01,
    outer=partial(torch.optim.SGD, lr=1e-3),
    burst=6,
    hands=(BY_HAND, BY_HAND_COMPILED),
)
_conv4 = partial(
    Workload,
    network=partial(Conv4, ways=5, channels=64),
    criterion=F.cross_entropy,
    inner_lr=0.4,
    outer=partial(torch.optim.Adam, lr=1e-3),
)
WORKLOADS = {
    "sinusoid": _sinusoid(
        title="sinusoid MLP 40-40, 100 environments, 1 step",
        episodes=partial(sinusoids, 100),
        rounds=12,
        targets={EAGER: 40, COMPILED: 50},
    ),
    "sinusoid5": _sinusoid(
        title="sinusoid MLP 40-40, 25 environments, 5 steps",
        episodes=partial(sinusoids, 25),
        rounds=12,
        targets={EAGER: 20},
        inner_steps=5,
    ),
    "fomaml": _sinusoid(
        title="FOMAML, sinusoid MLP 40-40, 100 environments, 1 step",
        episodes=partial(sinusoids, 100),
        rounds=12,
        targets={EAGER: 40},
        first_order=True,
    ),
    **{
        f"width{width}": _sinusoid(
            title=f"MLP {width}-{width}, 25 environments, 1 step",
            network=partial(SinusoidMLP, (width, width)),
            episodes=partial(sinusoids, 25),
            rounds=6,
            burst=3,
            targets={EAGER: target},
            forms=(EAGER,),
            hands=(BY_HAND,),
        )
        for width, target in ((256, 8), (512, 5), (1024, 4))
    },
    "conv4": _conv4(
        title="Conv4-64, 28x28, 5-way 1-shot, 15 queries, 8 environments, 1 step",
        episodes=partial(images, 8),
        rounds=9,
        targets={EAGER: 1.0, COMPILED: 1.2},
        forms=(EAGER, COMPILED, RECOMPUTED),
    ),
}
MEMORY = _conv4(
    title="peak memory: Conv4-64, 28x28, 5-way 1-shot, 15 queries, 4 environments, 5 steps",
    episodes=partial(images, 4),
    rounds=1,
    targets={RECOMPUTED: 1 / 0.65},
    inner_steps=5,
    forms=(EAGER, RECOMPUTED),
)


def accumulate_of(name: str, network: nn.Module, workload: Workload) -> Accumulate:
    """The contender's ``accumulate(environments)``: leaves the mean meta-gradient in ``network``'s ``.grad``."""
    options: dict[str, Any] = {
        "criterion": workload.criterion,
        "inner_lr": workload.inner_lr,
        "inner_steps": workload.inner_steps,
    }
    peers = {**PEERS, **HANDS}
    if name in peers:
        return peers[name](network, first_order=workload.first_order, **options)
    module = (FOMAML if workload.first_order else MAML)(network, **options, **OURS[name])

    def accumulate(environments: Environments) -> None:
        module.training_loss(environments).backward()

    return accumulate


def as_double(environments: Environments) -> Environments:
    (x, y), (x_query, y_query) = environments  # class labels stay integers
    convert = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    return Environments((convert(x), convert(y)), (convert(x_query), convert(y_query)))


def gradient_errors(names: list[str], network: nn.Module, workload: Workload, batch: Environments) -> dict[str, float]:
    """Relative difference of every contender's float64 meta-gradient from learn2learn's."""
    gradients = {}
    for name in names:
        own = copy.deepcopy(network).double()
        accumulate_of(name, own, workload)(as_double(batch))
        gradients[name] = harness.gradient_of(own)
    return {name: harness.relative_error(value, gradients["learn2learn"]) for name, value in gradients.items()}


def outer_step(name: str, network: nn.Module, workload: Workload, batch: Environments) -> Callable[[], None]:
    own = copy.deepcopy(network)
    accumulate, optimizer = accumulate_of(name, own, workload), workload.outer(own.parameters())

    def step() -> None:
        optimizer.zero_grad()
        accumulate(batch)
        optimizer.step()

    return step


def run_time(workload: Workload, compile_too: bool, rounds: int | None, clock: Callable[[], float]) -> dict[str, Any]:
    torch.manual_seed(0)
    network, batch = workload.network(), workload.episodes()
    others = (
        name for name in (*workload.hands, *workload.forms) if compile_too or name not in (COMPILED, BY_HAND_COMPILED)
    )
    names = [*PEERS, *others]
    errors = gradient_errors(names, network, workload, batch)
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise SystemExit(
            f"{workload.title}: meta-gradients differ from learn2learn's by more than {TOLERANCE}: {wrong}"
        )

    steps = {name: outer_step(name, network, workload, batch) for name in names}
    first_call = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        first_call[name] = time.perf_counter() - start
    seconds = harness.interleave(steps, rounds or workload.rounds, clock=clock, burst=workload.burst)
    result: dict[str, Any] = {"title": workload.title, "contenders": {}}
    rows = []
    for name in names:
        entry = {**harness.summary(seconds[name]), "first_call_s": round(first_call[name], 2)}
        result["contenders"][name] = entry
        entry["gradient_error"] = errors[name]
    medians = {name: entry["median_ms"] for name, entry in result["contenders"].items()}
    for name, entry in result["contenders"].items():
        for peer in PEERS:
            entry[f"times_{peer}"] = round(medians[peer] / medians[name], 3)
        entry["target_times_learn2learn"] = workload.targets.get(name)
        rows.append(_time_row(name, entry))
    header = ("", "median ms", "quartiles", "x learn2learn", "x higher", "target", "first call s", "gradient error")
    harness.print_table(workload.title, header, rows)
    return result


def _time_row(name: str, entry: dict[str, Any]) -> list[str]:
    target = entry["target_times_learn2learn"]
    met = "" if target is None else f"{target:g} {'met' if entry['times_learn2learn'] >= target else 'MISSED'}"
    return [
        name,
        f"{entry['median_ms']:.2f}",
        f"{entry['q1_ms']:.2f}-{entry['q3_ms']:.2f}",
        f"{entry['times_learn2learn']:.2f}",
        f"{entry['times_higher']:.2f}",
        met,
        f"{entry['first_call_s']:.1f}",
        f"{entry['gradient_error']:.1e}",
    ]


def memory_of(name: str) -> int:
    """Peak memory of one outer step of ``MEMORY``; to be called in a fresh process."""
    torch.manual_seed(0)
    network = MEMORY.network()
    step = outer_step(name, network, MEMORY, MEMORY.episodes())
    outer_step(name, network, MEMORY, images(1, queries=1))()  # loads libraries and generates the kernels
    return harness.peak_memory_growth(step)


def run_memory(repeats: int = 3) -> dict[str, Any]:
    peaks: dict[str, list[float]] = {}
    for name in [*PEERS, *MEMORY.forms]:
        command = [sys.executable, __file__, "--memory-of", name]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "32768"}
        for _ in range(repeats):
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            peaks.setdefault(name, []).append(int(output.split()[-1]) / 2**20)
    result: dict[str, Any] = {"title": MEMORY.title, "contenders": {}}
    rows = []
    medians = {name: sorted(values)[len(values) // 2] for name, values in peaks.items()}
    for name, median in medians.items():
        ratio, target = median / medians["learn2learn"], 0.65 if name == RECOMPUTED else None
        result["contenders"][name] = {
            "peak_mib": round(median, 1),
            "range_mib": [round(min(peaks[name]), 1), round(max(peaks[name]), 1)],
            "of_learn2learn": round(ratio, 3),
            "target_of_learn2learn": target,
        }
        met = "" if target is None else f"{target} {'met' if ratio <= target else 'MISSED'}"
        rows.append([name, f"{median:.0f}", f"{min(peaks[name]):.0f}-{max(peaks[name]):.0f}", f"{ratio:.2f}", met])
    harness.print_table(MEMORY.title, ("", "peak MiB", "range", "of learn2learn", "target"), rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, "memory"], default=[*WORKLOADS, "memory"])
    parser.add_argument(
        "--rounds", type=int, help="turns per contender (default: 12 turns of 6 for the sinusoid, 9 for Conv4)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out compile=True")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time, for a busy machine")
    parser.add_argument(
        "--default-allocator", action="store_true", help="let glibc return freed memory; else all contenders keep it"
    )
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "meta_learning.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of))
        return
    keeps = not arguments.default_allocator and keep_freed_memory()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    results: dict[str, Any] = {
        "machine": harness.machine(),
        "clock": clock.__name__,
        "keeps_freed_memory": keeps,
        "workloads": {},
    }
    for key in arguments.only:
        if key == "memory":
            results["workloads"][key] = run_memory()
        else:
            results["workloads"][key] = run_time(WORKLOADS[key], not arguments.no_compile, arguments.rounds, clock)
        harness.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
