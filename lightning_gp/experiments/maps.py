"""What the trainability maps of the papers share: options, running, the picture, and the table of findings.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_gp.plots import canvas, save_figure
from lightning_gp.runs.folders import write_json
from lightning_gp.trainability.grid import parse_shard
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import Curve, Lines, draw_map
from lightning_gp.trainability.result import Criterion, TrainabilityResult


class Finding(NamedTuple):
    """One row of the table: what the paper says, what was found, and whether they agree."""

    paper: str
    found: str
    agrees: bool


class Panel(NamedTuple):
    """A map as it is drawn: its title, the eigenvalues and curves of the theory, and other lines; see ``draw_map``."""

    title: str
    eigenvalues: Sequence[float] = ()
    curves: Sequence[Curve] | None = None
    lines: Lines = ()


@dataclass(frozen=True)
class Run:
    """How maps are computed.

    Attributes:
        quick: a coarse map of a small problem, in minutes.
        workers: processes of one thread each.
        shard: i/n for the i-th of n shares of the cells; join them with `lightning-gp map merge`.
        device: where to compute.
        output: folder; null for runs/ and the experiment's name.
    """

    quick: bool = False
    workers: int = 1
    shard: str = "1/1"
    device: str = "cpu"
    output: Path | None = None

    def path(self, experiment: str, name: str = "") -> Path:
        """Of the experiment's files, without extension; those of ``quick`` have a name of their own."""
        folder = Path("runs") / experiment if self.output is None else self.output
        return folder / f"{name or experiment}{'-quick' if self.quick else ''}"

    def computed(self, trainability: TrainabilityMap, experiment: str, name: str = "") -> TrainabilityResult:
        """Runs a map, or goes on with it, in ``<path>.jsonl``; a shard's file has its numbers in the name."""
        index, shards = parse_shard(self.shard)
        stem = self.path(experiment, name)
        path = stem.with_name(f"{stem.name}{'' if shards == 1 else f'-{index}of{shards}'}.jsonl")
        result = trainability.run(path, self.workers, (index, shards))
        print(f"{stem.name}: {result.outer_steps} outer steps for {len(result.cells)} cells, in {path}", flush=True)
        return result


RUN = Run()
"""In this process, in full."""


def complete(results: Sequence[TrainabilityResult]) -> bool:
    """Whether all cells are there; says what to do if not."""
    if all(result.complete for result in results):
        return True
    print("This is one of several shards: merge them, put the files in place, and run the command once more.")
    return False


def write(
    experiment: str,
    run: Run,
    results: Mapping[Panel, TrainabilityResult],
    findings: Sequence[Finding],
    numbers: Mapping[str, Any],
    **options: bool,
) -> None:
    """Draws the maps side by side (PNG, PDF), prints what was found against what the paper says, and writes it as JSON.

    Args:
        experiment: its name.
        run: how it was run.
        results: the maps, by how they are drawn.
        findings: the table.
        numbers: what else the JSON file holds.
        **options: of the command, beside those of ``run``.
    """
    figure, panels = canvas(len(results))
    for axes, (panel, result) in zip(panels, results.items(), strict=True):
        draw_map(axes, result, panel.eigenvalues, panel.curves, panel.title, panel.lines)
    path = run.path(experiment)
    files = save_figure(figure, path, ("png", "pdf"))
    # Where and on how many processes it was computed does not change the numbers.
    chosen = [f"--{key}" for key, value in {"quick": run.quick, **options}.items() if value]
    table = {"findings": [finding._asdict() for finding in findings], **numbers}
    write_json(
        path.with_suffix(".json"), {"command": " ".join(["lightning-gp reproduce", experiment, *chosen]), **table}
    )
    for row in findings:
        print(f"paper: {row.paper}\nfound: {row.found} [{'agrees' if row.agrees else 'DIFFERS'}]", flush=True)
    print(f"Table: {path}.json   Pictures: {', '.join(map(str, files))}", flush=True)


def borders(result: TrainabilityResult, criterion: Criterion = "diverged") -> dict[str, Any]:
    """The largest usable β of each α and of α = 0, for JSON (∞ as null)."""
    critical = result.critical_outer_lrs(criterion)
    return {
        "criterion": criterion,
        "alpha_zero": finite(result.zero_critical_outer_lr(criterion)),
        "by_alpha": {f"{alpha:g}": finite(beta) for alpha, beta in zip(result.inner_lrs, critical, strict=True)},
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


def finite(value: float | None) -> float | None:
    """The value, None where it is not finite: JSON has no ∞."""
    return value if value is not None and math.isfinite(value) else None
