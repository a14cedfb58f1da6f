"""What every benchmark shares: interleaved timing, gradient comparison, peak memory, the machine, tables and JSON."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    burst: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every call, with the contenders taking turns so that a change in machine load hits all alike.

    ``clock=time.process_time`` counts the CPU time of this process: on one thread it is the wall time of an idle
    machine, and stays meaningful on a busy one. ``burst`` calls are made in each turn, the first not counted if there
    are several: training runs one step after another, and does not begin each with another program's caches.
    """
    for call in contenders.values():
        for _ in range(warmup):
            call()
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)  # nobody always runs after the same neighbour
        for name in names[shift:] + names[:shift]:
            for call in range(burst):
                start = clock()
                contenders[name]()
                if call > 0 or burst == 1:
                    seconds[name].append(clock() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, median, high = (1e3 * quantile for quantile in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": round(median, 4), "q1_ms": round(low, 4), "q3_ms": round(high, 4), "rounds": len(seconds)}


def gradient_of(network: nn.Module) -> Tensor:
    """The ``.grad`` of all parameters as one vector."""
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    if missing:
        raise RuntimeError(f"no gradient reached {missing}")
    return torch.cat([p.grad.detach().flatten() for p in network.parameters() if p.grad is not None])


def relative_error(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm())


def peak_memory_growth(call: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process peaked during ``call`` above what it held before.

    The kernel keeps the high-water mark, so nothing is sampled and nothing is missed (scratch buffers of the
    convolution library included). Linux only; run it in a fresh process, after a small warm-up call that loads
    libraries, and with a fixed ``MALLOC_MMAP_THRESHOLD_`` so that freed tensors go back to the system at once.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory can be measured on Linux only")


def machine() -> dict[str, Any]:
    """What a reader needs to place the figures; no host names, no paths."""
    cpu, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Writes under a temporary name and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(temporary, path)
