"""What the trainability maps of the papers share: options, running, the picture, and the table of findings.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gp.files import replacing
from lightning_gp.trainability.grid import parse_shard
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import canvas, draw_map, save_figure
from lightning_gp.trainability.result import Criterion, TrainabilityResult


@dataclass(frozen=True)
class Finding:
    """One row of the table: what the paper says, what was found, and whether they agree."""

    paper: str
    found: str
    agrees: bool


def parser_of(name: str, description: str, output: str) -> argparse.ArgumentParser:
    """The options that all maps have."""
    parser = argparse.ArgumentParser(f"lightning-gp reproduce {name}", description=description)
    parser.add_argument("--quick", action="store_true", help="a coarse map of a small problem, in minutes")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each (default: %(default)s)")
    parser.add_argument("--shard", default="1/1", help="i/n: the i-th of n shares; join with `lightning-gp map merge`")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder (default: %(default)s)")
    return parser


def computed(trainability: TrainabilityMap, options: argparse.Namespace, name: str) -> TrainabilityResult:
    """Runs a map, or goes on with it, in ``<output>/<name>.jsonl``; a shard's file has its numbers in the name."""
    index, shards = parse_shard(options.shard)
    suffix = "" if shards == 1 else f"-{index}of{shards}"
    path = options.output / f"{file_name(name, options)}{suffix}.jsonl"
    result = trainability.run(path, options.workers, (index, shards))
    print(f"{name}: {result.outer_steps} outer steps computed for {len(result.cells)} cells, in {path}", flush=True)
    return result


def file_name(name: str, options: argparse.Namespace) -> str:
    """``--quick`` has files of its own."""
    return f"{name}-quick" if options.quick else name


def one_map(name: str, options: argparse.Namespace, trainability: TrainabilityMap, title: str, paper: str) -> None:
    """Runs one map and, where it is complete, writes its picture and whether a larger β is usable near the last α."""
    result = computed(trainability, options, name)
    if result.complete:
        findings = [larger_near_the_end(result, paper)]
        write(name, options, {title: result}, findings, {"borders": borders(result)})


def write(
    name: str,
    options: argparse.Namespace,
    results: dict[str, TrainabilityResult],
    findings: Sequence[Finding],
    numbers: dict[str, Any],
) -> None:
    """Draws the maps side by side (PNG, PDF), prints the table, and writes it as JSON."""
    if not all(result.complete for result in results.values()):
        print("This is one of several shards: merge them, put the file in place, and run the command once more.")
        return
    figure, panels = canvas(len(results))
    for axes, (title, result) in zip(panels, results.items(), strict=True):
        draw_map(axes, result, title=title)
    files = save_figure(figure, options.output / file_name(name, options))
    write_table(name, options, findings, numbers)
    print(f"Pictures: {', '.join(map(str, files))}", flush=True)


def write_table(name: str, options: argparse.Namespace, findings: Sequence[Finding], numbers: dict[str, Any]) -> None:
    """Prints what was found against what the paper says, and writes both as ``<output>/<name>.json``."""
    table = [{"paper": row.paper, "found": row.found, "agrees": row.agrees} for row in findings]
    path = options.output / f"{file_name(name, options)}.json"
    # Where and on how many processes it was computed does not change the numbers.
    chosen = [f"--{key}" for key in ("quick", "compile") if getattr(options, key, False)]
    summary = {"command": " ".join(["lightning-gp reproduce", name, *chosen]), "findings": table, **numbers}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    for row in findings:
        print(f"paper: {row.paper}\nfound: {row.found} [{'agrees' if row.agrees else 'DIFFERS'}]", flush=True)
    print(f"Table: {path}", flush=True)


def borders(result: TrainabilityResult, criterion: Criterion = "diverged") -> dict[str, Any]:
    """The largest usable β of each α and of α = 0, for JSON (∞ as null)."""
    at_zero = result.zero_critical_outer_lr(criterion)
    critical = result.critical_outer_lrs(criterion)
    return {
        "criterion": criterion,
        "alpha_zero": _finite(at_zero),
        "by_alpha": {f"{alpha:g}": _finite(beta) for alpha, beta in zip(result.inner_lrs, critical, strict=True)},
        "cells_diverged": int((result.diverged > 0).sum()),
        "cells": int(result.diverged.size),
        "outer_steps": result.outer_steps,
    }


def largest(result: TrainabilityResult, criterion: Criterion = "diverged") -> tuple[float, float, float]:
    """The largest border over α, where it is, and the border at α = 0; ∞ counts as the upper end of the grid."""
    top = float(result.outer_lrs[-1])
    critical = [min(float(beta), top) for beta in result.critical_outer_lrs(criterion)]
    best = max(range(len(critical)), key=critical.__getitem__)
    zero = result.zero_critical_outer_lr(criterion)
    assert zero is not None
    return critical[best], float(result.inner_lrs[best]), min(zero, top)


def larger_near_the_end(result: TrainabilityResult, paper: str) -> Finding:
    """[T21, section IX-D]: near the largest usable α, a larger β can be used than at α = 0."""
    beta, alpha, zero = largest(result)
    usable = [float(a) for a, b in zip(result.inner_lrs, result.critical_outer_lrs(), strict=True) if b > 0]
    last = max(usable, default=math.nan)
    found = (
        f"training diverges above β = {zero:.3g} at α = 0, and above β = {beta:.3g} at α = {alpha:.3g} "
        f"({beta / zero if zero else math.inf:.2f} times); the largest α with any β that trains is {last:.3g}"
    )
    return Finding(paper, found, beta > zero)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
