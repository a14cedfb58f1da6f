"""Trainings that can be killed and started again, trainings that are measured, and tests of what they leave."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gp._lightning import NAMESPACE, Callback, LightningDataModule, LightningModule, pl
from lightning_gp.callbacks.base import Probe
from lightning_gp.checks import whole
from lightning_gp.plots import save_figure
from lightning_gp.runs.folders import read_json, write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def quiet_trainer(device: str = "auto", **options: Any) -> Any:
    """A Trainer on one device that shows and keeps nothing unless ``options`` say so."""
    # An experiment builds many and prints its own progress, which their remarks on the hardware would hide.
    logging.getLogger(f"{NAMESPACE}.utilities.rank_zero").setLevel(logging.WARNING)
    silent = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    silent |= {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(devices=1, accelerator=device, **{**silent, **options})


class Progress(Callback):
    """Keeps one row of numbers from time to time, and prints it.

    Args:
        note: printed in front; nothing is printed without.
        every: iterations between rows; 0 for a row per validation.
        metrics: keys of what is logged; those that are missing are left out.
        probes: callbacks before this one in the Trainer's list, whose values follow.

    Attributes:
        rows: their ``iteration`` and the values by key.
        start: when it was made, in seconds.
    """

    def __init__(self, note: str, every: int = 0, metrics: Sequence[str] = (), probes: Sequence[Probe] = ()) -> None:
        self.note, self.every, self.metrics, self.probes = note, every, metrics, probes
        self.rows: list[Row] = []
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        """A row, if it is time."""
        if self.every and trainer.global_step % self.every == 0:
            self._add(trainer)

    def on_validation_end(self, trainer: Any, *_: object) -> None:
        """A row, if there is one per validation."""
        if not self.every:
            self._add(trainer)

    def _add(self, trainer: Any) -> None:
        logged, step, last = trainer.callback_metrics, trainer.global_step, trainer.max_steps
        values = {key: float(logged[key]) for key in self.metrics if key in logged}
        values |= {key: value for probe in self.probes for key, value in probe.values.items()}
        self.rows.append({"iteration": step, **values})
        if self.note:
            seconds = time.perf_counter() - self.start
            left = f"{seconds:.0f} s, {seconds * (last / max(step, 1) - 1):.0f} s to go"
            shown = [f"iteration {step}/{last}", *(f"{key} {value:.4g}" for key, value in values.items()), left]
            print(f"{self.note}: {', '.join(shown)}", flush=True)


def train(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path,
    iterations: int,
    note: str,
    best: bool = True,
    device: str = "auto",
) -> Path:
    """Trains on one device, goes on where a killed run stopped, and does nothing where one has finished.

    Args:
        module: what to train; every epoch of ``data`` ends with a validation and a checkpoint.
        data: its data.
        folder: of the checkpoints and the curves (``metrics.csv``).
        iterations: outer steps.
        note: printed in front of the progress.
        best: whether the result is the checkpoint with the best validation accuracy, or else the last.
        device: where to compute.

    Returns:
        The checkpoint to test.
    """
    finished, last = folder / "finished.json", folder / "last.ckpt"
    if finished.is_file():
        return folder / str(read_json(finished)["checkpoint"])
    choice: dict[str, Any] = {"monitor": "val/accuracy", "mode": "max"} if best else {}
    alike: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    checkpoint = pl.callbacks.ModelCheckpoint(folder, "best", **alike, **choice)
    # One that monitors something writes its `last.ckpt` only when it finds a better one. The mode tells the two apart.
    newest = pl.callbacks.ModelCheckpoint(folder, "last", mode="max", **alike)
    shown = ("train/loss", "val/accuracy", "val/teacher_variance", "val/probe_accuracy")
    trainer = quiet_trainer(
        device,
        max_steps=iterations,
        callbacks=[checkpoint, newest, Progress(note, metrics=shown)],
        enable_checkpointing=True,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        log_every_n_steps=10,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*(directory .* exists|Experiment logs directory).*")  # of a killed run
        trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.global_step < iterations:  # Lightning turns an interrupt from the keyboard into a normal end
        raise KeyboardInterrupt
    if best and checkpoint.best_model_path:
        result = Path(checkpoint.best_model_path)
    else:
        result = folder / "final.ckpt"
        trainer.save_checkpoint(result)
    write_json(finished, {"checkpoint": result.name, "iterations": iterations})
    return result


def evaluated(module: LightningModule, data: LightningDataModule, device: str = "auto") -> dict[str, float]:
    """All numbers that ``module`` logs on the test episodes of ``data``, by name without ``test/``."""
    (values,) = quiet_trainer(device).test(module, data, verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in values.items()}


def measured(
    module: LightningModule, data: LightningDataModule, iterations: int, every: int, probes: Sequence[Probe], note: str
) -> dict[str, Any]:
    """Trains on one CPU without validation, and returns what the probes measured.

    Args:
        module: what to train.
        data: its data.
        iterations: outer steps.
        every: iterations between measurements; the probes' own ``every_n_steps``.
        probes: the callbacks that measure.
        note: printed in front of the progress.

    Returns:
        ``rows``, one per measurement (``Progress``), and ``seconds``.
    """
    curve = Progress(note, every, probes=probes)
    quiet_trainer("cpu", max_steps=iterations, limit_val_batches=0, callbacks=[*probes, curve]).fit(module, data)
    return {"rows": curve.rows, "seconds": round(time.perf_counter() - curve.start, 1)}


def check_every(iterations: int, every: int) -> None:
    """Refuses settings that measure nothing.

    Raises:
        TypeError: if one is no whole number.
        ValueError: if ``every`` is not in 1 … ``iterations``.
    """
    whole(1, iterations=iterations, every=every)
    if every > iterations:
        raise ValueError(f"every={every} must be at least 1 and at most iterations={iterations}.")


def write_results(folder: Path, name: str, rows: Sequence[Row], summary: Row, figure: Figure) -> None:
    """Writes ``<name>.csv`` (rows, all with the same keys), ``<name>.json`` (summary) and ``<name>.png``."""
    write_csv(folder / f"{name}.csv", rows)
    write_json(folder / f"{name}.json", summary)
    (picture,) = save_figure(figure, folder / name)
    print(f"Picture: {picture}   Curves: {name}.csv   Summary: {name}.json", flush=True)
