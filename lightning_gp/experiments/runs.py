"""Training runs in folders of their own, which can be killed and started again, and tests of what they leave."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gp._lightning import Callback, LightningDataModule, LightningModule, pl
from lightning_gp.files import replacing


def same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes ``settings`` into a new folder, and compares them with what an old one was made with.

    Raises:
        ValueError: if they differ, naming what.
    """
    path = folder / "settings.json"
    current = json.loads(json.dumps(settings))
    if path.is_file():
        kept = json.loads(path.read_text())
        different = sorted(key for key in kept.keys() | current.keys() if kept.get(key) != current.get(key))
        if different:
            changes = ", ".join(f"{key} was {kept.get(key)!r}, is {current.get(key)!r}" for key in different)
            raise ValueError(
                f"{folder} holds a run with other settings: {changes}. Give another folder for the runs, or remove it."
            )
    else:
        write_json(path, current)


def train(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path,
    iterations: int,
    note: str,
    best: bool = True,
    accelerator: str = "auto",
) -> Path:
    """Trains on one device, goes on where a killed run stopped, and does nothing where one has finished.

    Args:
        module: what to train; every epoch of ``data`` ends with a validation and a checkpoint.
        data: its data.
        folder: of the checkpoints and the curves (``metrics.csv``).
        iterations: optimizer steps.
        note: printed in front of the progress.
        best: whether the result is the checkpoint with the best validation accuracy, or else the last.
        accelerator: of the Trainer.

    Returns:
        The checkpoint to test.
    """
    finished, last = folder / "finished.json", folder / "last.ckpt"
    if finished.is_file():
        return folder / str(json.loads(finished.read_text())["checkpoint"])
    choice: dict[str, Any] = {"monitor": "val/accuracy", "mode": "max"} if best else {}
    checkpoint = pl.callbacks.ModelCheckpoint(
        folder, "best", save_last=True, enable_version_counter=False, save_on_train_epoch_end=False, **choice
    )
    trainer = _trainer(
        max_steps=iterations,
        accelerator=accelerator,
        callbacks=[checkpoint, _Progress(note)],
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        num_sanity_val_steps=0,
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


def evaluated(module: LightningModule, data: LightningDataModule, accelerator: str = "auto") -> dict[str, float]:
    """All numbers that ``module`` logs on the test episodes of ``data``, by name without ``test/``."""
    trainer = _trainer(accelerator=accelerator, logger=False, enable_checkpointing=False)
    (values,) = trainer.test(module, data, verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in values.items()}


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _trainer(**options: Any) -> Any:
    return pl.Trainer(devices=1, enable_progress_bar=False, enable_model_summary=False, **options)


class _Progress(Callback):
    """One line per validation."""

    def __init__(self, note: str) -> None:
        self.note = note

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        names = ("train/loss", "val/accuracy", "val/teacher_variance", "val/probe_accuracy")
        shown = ", ".join(f"{name} {float(metrics[name]):.4g}" for name in names if name in metrics)
        print(f"{self.note}: iteration {trainer.global_step}/{trainer.max_steps}, {shown}", flush=True)
