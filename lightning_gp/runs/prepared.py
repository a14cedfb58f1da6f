"""What a config becomes for one run: folders of its own, the checkpoint that is meant, nothing written over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gp.runs.run_folder import best_or_last, fresh, holds_run, latest, moved, numbered, places, roots

UNTRAINED = "initial"
"""The word for the weights that a config builds, in place of a checkpoint."""


def prepare(section: Any, command: str, files: Sequence[Path] = ()) -> None:
    """Changes the config of a run in place, before anything is built.

    Args:
        section: a Namespace with ``trainer`` and ``ckpt_path``.
        command: fit, validate, test or predict.
        files: the config's; one that a run has written means this run, and not the last of several.

    Raises:
        ValueError: if there is no checkpoint to evaluate.
    """
    if section.trainer.get("enable_model_summary") is None and not _has(section.trainer, "ModelSummary"):
        section.trainer.enable_model_summary = False  # `runs.ending` says what there is, without rows of zeros
    if section.trainer.get("fast_dev_run"):
        return
    if command == "fit":
        _prepare_fit(section, files)
    else:
        _prepare_evaluation(section, command, files)


def _prepare_fit(section: Any, files: Sequence[Path]) -> None:
    trainer = section.trainer.as_dict()
    given = section.ckpt_path
    if given in ("best", "last"):
        folders = _meant(trainer, files)
        found = best_or_last(moved(trainer, folders), given)
        if found is None:
            return  # Lightning says that there is none, and starts at the beginning
        section.ckpt_path = str(found)
    elif given and (own := _run_of(Path(given), trainer)):
        folders = own
    elif any(holds_run(place) for place in places(trainer)):
        folders = fresh(roots(trainer))
        old, new = next(iter(folders.items()))
        print(f"{old} holds a run and stays as it is. This one goes to {new}; --resume goes on with the last one.")
    else:
        return
    section.trainer = moved(section.trainer, folders)


def _prepare_evaluation(section: Any, command: str, files: Sequence[Path]) -> None:
    trainer = section.trainer.as_dict()
    given = section.ckpt_path
    if given in (None, "best", "last"):
        folders = _meant(trainer, files)
        found = best_or_last(moved(trainer, folders), given or "best")
        if found is None:
            raise ValueError(
                f"There is no checkpoint of a run in {_names(trainer)}, and {command} would take random weights. Train "
                f"first (lightning-gp fit), give --ckpt_path FILE, or --ckpt_path {UNTRAINED} for the weights that the "
                "config builds."
            )
        section.ckpt_path = str(found)
        print(f"Weights: {found}", flush=True)
    else:
        folders = _run_of(Path(given), trainer) or {}
        section.ckpt_path = None if given == UNTRAINED else given
    section.trainer = moved(section.trainer, folders)
    for logger in section.trainer.logger if isinstance(section.trainer.logger, list) else [section.trainer.logger]:
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and arguments.get("version") == "" and arguments.get("save_dir"):
            home, number = Path(arguments.save_dir) / (arguments.get("name") or "") / command, 1
            while numbered(home, number).exists():
                number += 1
            arguments.version = numbered(home, number).name  # beside the metrics of the training, not in their place


def _meant(trainer: dict[str, Any], files: Sequence[Path]) -> dict[Path, Path]:
    own = {folder.absolute() for folder in roots(trainer)} & {file.absolute().parent for file in files}
    return {} if own else latest(trainer)


def _run_of(checkpoint: Path, trainer: dict[str, Any]) -> dict[Path, Path] | None:
    """The folders of the run that a checkpoint belongs to, if it is one of this config."""
    folders, number = roots(trainer), 1
    while number == 1 or any(numbered(folder, number).is_dir() for folder in folders):
        run = {folder: numbered(folder, number) for folder in folders}
        if any(folder in checkpoint.parents for folder in run.values()):
            return run
        number += 1
    return None


def _names(trainer: dict[str, Any]) -> str:
    return ", ".join(map(str, places(trainer) or roots(trainer) or [Path("lightning_logs")]))


def _has(trainer: Any, name: str) -> bool:
    callbacks = trainer.get("callbacks") or []
    return any(
        name in str(each.get("class_path", "")) for each in (callbacks if isinstance(callbacks, list) else [callbacks])
    )
