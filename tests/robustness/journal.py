"""What a killed run leaves behind: every logged value and every batch it saw, one JSON line each, at once on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning_gp._lightning import Callback, pl


class Journal(pl.loggers.logger.Logger):
    """A logger whose file survives any kill; several attempts append to the same file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    name = "journal"
    version = ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.write("logged", step, {key: float(value).hex() for key, value in metrics.items()})

    def write(self, kind: str, step: int | None, values: dict[str, str]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([kind, step, values]) + "\n")


class Episodes(Callback):
    """Writes down which episodes each training step sees."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        digest = hashlib.sha256()
        for tensor in (*batch.support, *batch.query):
            digest.update(tensor.numpy().tobytes())
        place = f"epoch {trainer.current_epoch} batch {batch_idx}"
        trainer.logger.write("episodes", trainer.global_step, {place: digest.hexdigest()})


def entries(path: Path) -> dict[tuple[str, int, str], set[str]]:
    """(kind, step, key) → the values that any attempt wrote there; a last line cut short by a kill does not count.

    What a measurement costs is left out: it is a time.
    """
    found: dict[tuple[str, int, str], set[str]] = {}
    for line in path.read_text().splitlines():
        try:
            kind, step, values = json.loads(line)
        except json.JSONDecodeError:
            continue
        for key, value in values.items():
            if "cost_seconds" not in key:
                found.setdefault((kind, step, key), set()).add(value)
    return found
