"""Where a run of a config is: its folder, its best and its last checkpoint, and a new folder for the next run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_gp._lightning import pl
from lightning_gp.checkpoints import WholeCheckpoints


def places(trainer: Mapping[str, Any]) -> list[Path]:
    """The folders that every run of a config's trainer would share: of its checkpoints and of its metrics.

    Lightning's own folders, ``version_0`` and so on, are not among them: they are a run's own.
    """
    found = []
    for part in _parts(trainer):
        arguments = part.get("init_args") or {}
        if arguments.get("dirpath"):
            found.append(Path(arguments["dirpath"]))
        elif arguments.get("save_dir") and arguments.get("version") == "":
            found.append(Path(arguments["save_dir"]) / (arguments.get("name") or ""))
    return found


def holds_run(folder: Path) -> bool:
    """Whether there are checkpoints or metrics in it."""
    return (folder / "metrics.csv").exists() or any(folder.glob("*.ckpt"))


def roots(trainer: Mapping[str, Any]) -> list[Path]:
    """The folders that a run of its own would have under another name: the root, and places that are not below it."""
    root = [Path(trainer["default_root_dir"])] if trainer.get("default_root_dir") else []
    return list(dict.fromkeys([*root, *(place for place in places(trainer) if not _below(place, root))]))


def moved(value: Any, folders: Mapping[Path, Path]) -> Any:
    """A config in which every path below one of ``folders`` is below its new place."""
    if isinstance(value, Namespace):
        return Namespace(**{key: moved(each, folders) for key, each in vars(value).items()})
    if isinstance(value, dict):
        return {key: moved(each, folders) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each, folders) for each in value]
    if isinstance(value, (str, os.PathLike)) and value:
        for old, new in folders.items():
            if _below(Path(value), [old]):
                return str(new / Path(value).relative_to(old))
    return value


def numbered(folder: Path, number: int) -> Path:
    """``folder`` for the first run, ``folder_2`` for the second."""
    return folder if number == 1 else folder.with_name(f"{folder.name}_{number}")


def fresh(folders: Sequence[Path]) -> dict[Path, Path]:
    """Each folder and the first numbered name that none of them has yet."""
    number = 2
    while any(numbered(folder, number).exists() for folder in folders):
        number += 1
    return {folder: numbered(folder, number) for folder in folders}


def latest(trainer: Mapping[str, Any]) -> dict[Path, Path]:
    """Each folder of ``roots`` and that of its last run, by number."""
    folders, number = roots(trainer), 1
    while any(numbered(folder, number + 1).is_dir() for folder in folders):
        number += 1
    return {folder: numbered(folder, number) for folder in folders}


def checkpoints(trainer: Mapping[str, Any]) -> list[Path]:
    """The checkpoints of the newest run that this config has left, oldest first."""
    folders = [place for place in places(trainer) if any(place.glob("*.ckpt"))]
    if not folders:  # of Lightning's own numbering
        root = Path(trainer.get("default_root_dir") or ".")
        versions = {path.parent for path in root.glob("*/version_*/checkpoints/*.ckpt")}
        folders = sorted(versions, key=lambda folder: int(folder.parent.name.rpartition("_")[2]))[-1:]
    found = [path for folder in folders for path in folder.glob("*.ckpt")]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name.startswith("last")))


def best_or_last(trainer: Mapping[str, Any], which: str = "best") -> Path | None:
    """The checkpoint of a config's run: the best by what its ModelCheckpoint monitors, or else the last; None of none.

    Args:
        trainer: section of the config.
        which: ``"best"`` or ``"last"``.
    """
    found = checkpoints(trainer)
    if not found:
        return None
    if which == "last":
        return next((path for path in reversed(found) if path.stem == "last"), found[-1])
    for state in WholeCheckpoints().load_checkpoint(found[-1]).get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            best = Path(state["best_model_path"])
            moved_too = [path for path in found if path.name == best.name]  # the folder may have been moved
            if best in found or moved_too:
                return best if best in found else moved_too[0]
    return found[-1]


def keep_metrics(trainer: Any, checkpoint: Path) -> None:
    """Puts the metrics of a resumed run in front of what its CSVLoggers will write, up to where it resumes.

    Lightning would delete them. To be called before training.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():
        path = Path(logger.log_dir or "") / "metrics.csv" if isinstance(logger, pl.loggers.CSVLogger) else Path()
        if path.is_file():
            loops = trainer.strategy.checkpoint_io.load_checkpoint(checkpoint).get("loops", {})
            steps = loops.get("fit_loop", {}).get("epoch_loop.state_dict", {}).get("_batches_that_stepped", math.inf)
            with path.open(newline="") as file:
                rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
            writer: Any = logger.experiment  # deletes the file
            writer.metrics = [row for row in rows if float(row.get("step", 0)) < steps]
            writer.save()


def _parts(trainer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("callbacks", "logger"):
        section = trainer.get(key)
        for part in section if isinstance(section, list) else [section]:
            if isinstance(part, Mapping):
                yield part


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)
