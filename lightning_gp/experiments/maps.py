"""What the trainability maps of the papers share: options, running, the picture, and the table of findings.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_gp.experiments.border_tests import FEWEST
from lightning_gp.plots import canvas, save_figure
from lightning_gp.runs.folders import write_json
from lightning_gp.trainability.grid import check_seeds, parse_rates, parse_shard
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import Curve, Lines, draw_map
from lightning_gp.trainability.refining import Criterion
from lightning_gp.trainability.result import TrainabilityResult

FIVE = tuple(range(FEWEST))
FEW, WIDTH = 4, 0.05
"""Outer rates of a map that is for its borders, and their relative width."""
VERDICTS = {True: "agrees", False: "DIFFERS", None: "UNDECIDED"}


class Finding(NamedTuple):
    """One row of the table: what the paper says, what was found, and whether they agree; None if it decides nothing."""

    paper: str
    found: str
    agrees: bool | None


class Panel(NamedTuple):
    """A map as it is drawn: its title, the eigenvalues and curves of the theory, and other lines; see ``draw_map``."""

    title: str
    eigenvalues: Sequence[float] = ()
    curves: Sequence[Curve] | None = None
    lines: Lines = ()
    criterion: Criterion = "diverged"


@dataclass(frozen=True)
class Run:
    """How maps are computed.

    Attributes:
        quick: a coarse map of a small problem, in minutes.
        workers: processes of one thread each.
        shard: i/n for the i-th of n shares of the cells; join them with `lightning-gp map merge`.
        device: where to compute.
        output: folder; null for runs/ and the experiment's name.
        seeds: of the runs; one number N stands for 0 … N − 1; null for the experiment's own, five where that is fast.
        refine: bisect borders between the rates of the grid to this relative width, such as 0.05.
        borders: only borders: four outer rates in place of the grid's, and refine, 0.05 if not given.
    """

    quick: bool = False
    workers: int = 1
    shard: str = "1/1"
    device: str = "cpu"
    output: Path | None = None
    seeds: Sequence[int] | None = None
    refine: float | None = None
    borders: bool = False

    def grid(self, inner_lrs: tuple[str, int], outer_lrs: tuple[str, int]) -> tuple[list[float], list[float]]:
        """α and β of two ranges, each with the count of rates that ``quick`` has; the papers' in full."""
        alphas, betas = (
            parse_rates(f"{text}:{count}" if self.quick else text) for text, count in (inner_lrs, outer_lrs)
        )
        return alphas, parse_rates(f"{outer_lrs[0]}:{FEW}") if self.borders else betas

    def chosen(self, own: Sequence[int] = FIVE) -> tuple[int, ...]:
        """The seeds, those of the experiment where none were given."""
        return check_seeds(own if self.seeds is None else self.seeds)

    @property
    def words(self) -> list[str]:
        """The options on which numbers depend: where and on how many processes it was computed does not change them."""
        found = [f"--{name}" for name in ("quick", "borders") if getattr(self, name)]
        if self.seeds is not None:
            count = len(self.seeds)
            counted = count > 0 and list(self.seeds) == list(range(count))
            found += ["--seeds", *([str(count)] if counted else [f"[{', '.join(map(str, self.seeds))}]"])]
        return found if self.refine is None else [*found, "--refine", f"{self.refine:g}"]

    def path(self, experiment: str, name: str = "") -> Path:
        """Of the experiment's files, without extension; those of ``quick`` and ``borders`` have names of their own."""
        folder = Path("runs") / experiment if self.output is None else self.output
        return folder / f"{name or experiment}{'-quick' if self.quick else ''}{'-borders' if self.borders else ''}"

    def computed(
        self, trainability: TrainabilityMap, experiment: str, name: str = "", criterion: Criterion = "diverged"
    ) -> TrainabilityResult:
        """Runs a map, or goes on with it, in ``<path>.jsonl``; a shard's file has its numbers in the name.

        Borders of ``criterion`` are refined, when all shards are there.
        """
        index, shards = parse_shard(self.shard)
        stem = self.path(experiment, name)
        path = stem.with_name(f"{stem.name}{'' if shards == 1 else f'-{index}of{shards}'}.jsonl")
        refine = (WIDTH if self.borders and self.refine is None else self.refine) if shards == 1 else None
        result = trainability.run(path, self.workers, (index, shards), refine=refine, criterion=criterion)
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
    rows: int = 1,
    **options: bool,
) -> None:
    """Draws the maps side by side (PNG, PDF), prints what was found against what the paper says, and writes it as JSON.

    Args:
        experiment: its name.
        run: how it was run.
        results: the maps, by how they are drawn.
        findings: the table.
        numbers: what else the JSON file holds.
        rows: of panels.
        **options: of the command, beside those of ``run``.
    """
    figure, panels = canvas(len(results) // rows, rows)
    for axes, (panel, result) in zip(panels, results.items(), strict=True):
        draw_map(axes, result, panel.eigenvalues, panel.curves, panel.title, panel.lines, panel.criterion)
    path = run.path(experiment)
    files = save_figure(figure, path, ("png", "pdf"))
    chosen = [*run.words, *(f"--{key}" for key, value in options.items() if value)]
    table = {"findings": [finding._asdict() for finding in findings], **numbers}
    write_json(
        path.with_suffix(".json"), {"command": " ".join(["lightning-gp reproduce", experiment, *chosen]), **table}
    )
    for row in findings:
        print(f"paper: {row.paper}\nfound: {row.found} [{VERDICTS[row.agrees]}]", flush=True)
    print(f"Table: {path}.json   Pictures: {', '.join(map(str, files))}", flush=True)


def borders(result: TrainabilityResult, criterion: Criterion = "diverged") -> dict[str, Any]:
    """The largest usable β of each α and of α = 0 over seeds, for JSON (∞ as null)."""
    return {
        "criterion": criterion,
        "seeds": list(result.header["seeds"]),
        "alpha_zero": spread(result.seed_borders(0.0, criterion)),
        "by_alpha": {f"{alpha:g}": spread(result.seed_borders(alpha, criterion)) for alpha in result.inner_lrs},
        "cells_diverged": int((result.diverged > 0).sum()),
        "cells": int(result.diverged.size),
        "outer_steps": result.outer_steps,
    }


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, range and all values of several seeds, for JSON (∞ as null)."""
    found = [float(value) for value in values]
    return {
        "median": finite(float(np.median(found))),
        "range": [finite(min(found)), finite(max(found))],
        "by_seed": [finite(value) for value in found],
    }


def shown(values: Iterable[float]) -> str:
    """Median and range in a sentence: ``0.3 (0.2 to 0.4)``."""
    found = [float(value) for value in values]
    middle = f"{float(np.median(found)):.3g}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.3g} to {max(found):.3g})"


def finite(value: float | None) -> float | None:
    """The value, None where it is not finite: JSON has no ∞."""
    return value if value is not None and math.isfinite(value) else None
