"""One training of a comparison: a config of its own, for a folder of its own, trained and tested where it stopped."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from lightning_gp._lightning import Callback
from lightning_gp.commands.training import lightning_cli
from lightning_gp.comparison.outcome import Result, read_result
from lightning_gp.files import replacing
from lightning_gp.modules.evaluation import Evaluation
from lightning_gp.runs.curves import read_curves
from lightning_gp.runs.folders import same
from lightning_gp.runs.run_folder import best_or_last, keep_metrics, moved, roots
from lightning_gp.runs.versions import all_versions, write_versions
from lightning_gp.trainability.describe import checksum

PROG = "lightning-gp compare"
CONFIG, CHECKPOINTS, RESUME = "config.yaml", "checkpoints", "resume"
FREE = ("default_root_dir", "save_dir", "dirpath", "enable_progress_bar", "enable_model_summary", "num_workers")
"""Settings that change no number: where a run is, and what is shown of it."""


class Run(NamedTuple):
    """A training on its way to a process.

    Attributes:
        seed: of weights and episodes.
        name: as the table has it.
        folder: where it is kept, which holds its config.
        home: the working folder of the command, from which paths in the config count.
    """

    seed: int
    name: str
    folder: str
    home: str


class Recorder(Callback):
    """Keeps what a test finds in each episode, and the checksum of the episodes.

    Attributes:
        values: by name, in the order of the episodes; empty of a module that does not tell.
        batches: checksums; None where they are spread over processes.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.batches: list[str] | None = None

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Asks the module to keep the values of episodes."""
        if trainer.world_size == 1:
            self.batches = []
            if isinstance(pl_module, Evaluation):
                pl_module.episode_values = {}

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        """Notes which episodes they are."""
        if self.batches is not None:
            self.batches.append(checksum(_tensors(batch)))

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes the values from the module."""
        if isinstance(pl_module, Evaluation):
            found, pl_module.episode_values = pl_module.episode_values or {}, None
            lengths = {len(column) for column in found.values()}
            self.values = found if len(lengths) == 1 else {}


def placed(config: Mapping[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """The config of ``fit`` for one run: of this seed, with checkpoints to go on from and metrics in ``folder``.

    A data module that draws by a ``seed`` gets it, too. Of the config's loggers those that write no CSV stay.
    """
    trainer = dict(config["trainer"])
    trainer = dict(moved(trainer, dict.fromkeys(roots(trainer), folder)))
    trainer["default_root_dir"] = str(folder)
    given = trainer.get("logger")
    others = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, Mapping)]
    others = [each for each in others if not str(each.get("class_path")).endswith("CSVLogger")]
    csv_options = {"save_dir": str(folder), "name": None, "version": "", "flush_logs_every_n_steps": 1}
    trainer["logger"] = [{"class_path": "CSVLogger", "init_args": csv_options}, *others]
    callbacks = trainer.get("callbacks") or []
    callbacks = [dict(each) for each in (callbacks if isinstance(callbacks, list) else [callbacks])]
    savers = [each for each in callbacks if str(each.get("class_path")).endswith("ModelCheckpoint")]
    for number, saver in enumerate(savers):
        saver["init_args"] = {**(saver.get("init_args") or {}), "enable_version_counter": False}
        saver["init_args"]["dirpath"] = str(folder / (f"{CHECKPOINTS}_{number + 1}" if number else CHECKPOINTS))
    # One that monitors something writes its `last.ckpt` only when it finds a better one. The mode, of no effect, tells
    # the one to resume from apart from a config's own without a monitor, which Lightning asks for.
    resume = {"dirpath": str(folder / RESUME), "filename": "last", "mode": "max", "enable_version_counter": False}
    callbacks.append({"class_path": "ModelCheckpoint", "init_args": resume})
    trainer |= {"callbacks": callbacks, "enable_checkpointing": None}
    if trainer.get("enable_model_summary") is None:
        trainer["enable_model_summary"] = False
    data = dict(config["data"])
    if "seed" in data.get("init_args", {}):
        data["init_args"] = {**data["init_args"], "seed": seed}
    return {**config, "seed_everything": seed, "trainer": trainer, "data": data}


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Writes the config of a run, and compares it with that of a run which is there.

    Raises:
        ValueError: if that has other settings, naming which.
    """
    path = folder / CONFIG
    if path.is_file():
        same(folder, _flat(yaml.safe_load(path.read_text("utf-8"))), _flat(config))
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "utf-8")


def train_and_test(run: Run) -> None:
    """Trains and tests a run, from its last checkpoint if there is one, and writes its result; in any process."""
    folder = Path(run.folder)
    if read_result(folder) is not None:
        return
    start = time.perf_counter()
    with _working_folder(run.home):
        cli = lightning_cli([f"--config={folder / CONFIG}", *quiet_words()], PROG, run=False, save_config_callback=None)
        write_versions(folder)
        last = folder / RESUME / "last.ckpt"
        if last.is_file():
            keep_metrics(cli.trainer, last)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(last) if last.is_file() else None)
        if cli.trainer.interrupted:  # Lightning may turn an interrupt from the keyboard into a normal end
            raise KeyboardInterrupt
        best = best_or_last(yaml.safe_load((folder / CONFIG).read_text("utf-8"))["trainer"])
        recorder = Recorder()
        cli.trainer.callbacks.append(recorder)
        (tested,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=str(best), verbose=False)
    values = {key.removeprefix("test/"): float(value) for key, value in tested.items()}
    batches = None if recorder.batches is None else " ".join(recorder.batches)
    notes = {"checkpoint": None if best is None else best.name, "seconds": round(time.perf_counter() - start, 1)}
    curves = read_curves(folder / "metrics.csv")
    Result(values, recorder.values, batches, curves, {**notes, "versions": all_versions()}).write(folder)


def quiet_words() -> list[str]:
    """No progress bar where nobody would see it move."""
    return [] if sys.stderr.isatty() else ["--trainer.enable_progress_bar=false"]


@contextlib.contextmanager
def _working_folder(home: str) -> Iterator[None]:
    """The folder from which a config's paths count, in a process that may have begun elsewhere."""
    before = os.getcwd()
    os.chdir(home)
    if home not in sys.path:
        sys.path.insert(0, home)  # so that a user's own module can be named by class_path
    try:
        yield
    finally:
        os.chdir(before)


def _tensors(batch: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that change no number."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, each in value.items():
            if key not in FREE:
                found |= _flat(each, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return _flat({str(number): each for number, each in enumerate(value)}, name)
    return {name: value}
