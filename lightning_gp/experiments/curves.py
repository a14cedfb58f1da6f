"""Trains with probes attached and keeps what they measure; writes it as picture, table and summary."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gp._lightning import Callback, LightningDataModule, LightningModule, pl
from lightning_gp.callbacks.base import Probe
from lightning_gp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


class _Curve(Callback):
    """Keeps what the probes before it in the Trainer's list have measured, one row per measurement."""

    def __init__(self, probes: Sequence[Probe], every: int, note: str) -> None:
        self.probes, self.every, self.note = probes, every, note
        self.rows: list[Row] = []
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every:
            return
        values = {key: value for probe in self.probes for key, value in probe.values.items()}
        self.rows.append({"iteration": trainer.global_step, **values})
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        seconds = time.perf_counter() - self._start
        print(f"{self.note}: iteration {trainer.global_step}/{trainer.max_steps}, {shown}, {seconds:.0f} s", flush=True)


def measured(
    module: LightningModule, data: LightningDataModule, iterations: int, every: int, probes: Sequence[Probe], note: str
) -> list[Row]:
    """Trains on one CPU, and returns what the probes measured.

    Args:
        module: what to train.
        data: its data; nothing is validated.
        iterations: optimizer steps.
        every: steps between measurements; the probes' own ``every_n_steps``.
        probes: the callbacks that measure.
        note: printed in front of the progress.

    Returns:
        One row per measurement: its ``iteration`` and the probes' values by key.
    """
    curve = _Curve(probes, every, note)
    trainer: Any = pl.Trainer(
        max_steps=iterations,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*probes, curve],
    )
    trainer.fit(module, data)
    return curve.rows


def check_every(iterations: int, every: int) -> None:
    """Refuses settings that measure nothing.

    Raises:
        ValueError: if ``every`` is not in 1 … ``iterations``.
    """
    if not 1 <= every <= iterations:
        raise ValueError(f"every={every} must be at least 1 and at most iterations={iterations}.")


def write_results(
    folder: Path, name: str, rows: Sequence[Row], summary: Row, draw: Callable[[Sequence[Axes]], None]
) -> None:
    """Writes ``<name>.csv`` (rows), ``<name>.json`` (summary) and ``<name>.png``, each whole or not at all.

    Args:
        folder: where to.
        name: of the files, without extension.
        rows: of the table, all with the same keys.
        summary: what JSON can hold.
        draw: draws into the two panels of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with replacing(folder / f"{name}.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / f"{name}.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(list(figure.subplots(1, 2)))
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, dpi=120, format="png")
    print(f"Picture: {folder / name}.png   Curves: {name}.csv   Summary: {name}.json", flush=True)
