"""Resuming a fit: which checkpoint is refused, and the end of an epoch that came after it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from lightning_gp._lightning import Callback
from lightning_gp.hyperparameters import plain
from lightning_gp.modules.arguments import UNSAVED, differ, savable, unsaved
from lightning_gp.networks.pretrained import weight_differences

FREE = ("vectorize", "recompute", "compile", "eval_inner_steps")
"""Arguments that change how fast a run is or what it reports, not what it trains; a resumed run may change them."""


def check_weights(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuses the weights of another network.

    Args:
        own: the state dict of the module.
        saved: that of the checkpoint.

    Raises:
        ValueError: naming up to three differences.
    """
    differences = weight_differences(own, saved)
    if differences:
        raise ValueError(
            f"The checkpoint holds other weights: {differences}. Build the network and the algorithm with the "
            "arguments of the run that saved it, or give another ckpt_path."
        )


def check_given(algorithm: str, lacks: Mapping[str, str]) -> None:
    """Refuses to go on with a default where something else was given when the checkpoint was saved.

    Args:
        algorithm: name of the module's class.
        lacks: what was given then and is not now, with a description of it.

    Raises:
        ValueError: naming each.
    """
    if lacks:
        each = ", ".join(f"{name}={text}" for name, text in sorted(lacks.items()))
        names = ", ".join(f"{name}=..." for name in sorted(lacks))
        raise ValueError(
            f"The checkpoint is of a {algorithm} that was given {each}, which no checkpoint holds; with the default it "
            f"would compute other numbers. Give it again: {algorithm}.load_from_checkpoint(path, network=..., {names})."
        )


def check_configuration(
    algorithm: str, arguments: Mapping[str, Any], given: Mapping[str, str], checkpoint: Mapping[str, Any]
) -> None:
    """Refuses to continue a run under another algorithm or with other arguments of it.

    Args:
        algorithm: name of the module's class.
        arguments: its hyperparameters.
        given: descriptions of its other arguments that are not at their defaults.
        checkpoint: as saved; what it does not tell is not compared.

    Raises:
        ValueError: naming every difference, and how to start a new run from the weights.
    """
    differences = []
    if checkpoint.get("algorithm", algorithm) != algorithm:
        differences.append(f"the algorithm is {checkpoint['algorithm']} there but {algorithm} here")
    saved = checkpoint.get("hyper_parameters", {})
    for name in sorted(set(arguments) & set(saved) - {*FREE, *UNSAVED}):
        if not name.startswith("_") and _plain(saved[name]) != _plain(arguments[name]):
            differences.append(f"{name} is {saved[name]!r} there but {arguments[name]!r} here")
    noted = checkpoint.get("given")
    if noted is not None:
        own = {name: text for name, text in given.items() if unsaved(name, arguments)}
        for name in sorted((noted.keys() | own.keys()) - {*FREE, "optimizer", "lr_scheduler"}):
            if name not in noted or name not in own or differ(noted[name], own[name]):
                there, here = (each.get(name, "at its default") for each in (noted, own))
                differences.append(f"{name} is {there} there but {here} here")
    _refuse(differences)


def settings(trainer: Any) -> list[dict[str, Any]]:
    """What the optimizers and schedulers of a Trainer are set to before the first step, in plain values."""
    found = []
    for optimizer in trainer.optimizers:
        for index, group in enumerate(optimizer.param_groups):
            found.append(
                {
                    "part": f"the optimizer{f', group {index},' if index else ''}",
                    "class": type(optimizer).__name__,
                    **_savable(group),
                }
            )
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        when = {"interval": config.interval, "frequency": config.frequency, "monitor": config.monitor}
        state = _savable(scheduler.state_dict())
        found.append({"part": "the lr_scheduler", "class": type(scheduler).__name__, **when, **state})
    return found


def _savable(state: Mapping[str, Any]) -> dict[str, Any]:
    speed = ("params", "foreach", "fused", "capturable", "base_lrs", "last_epoch", "initial_lr")
    return {
        name: plain(value)
        for name, value in state.items()
        if isinstance(name, str) and not name.startswith("_") and name not in speed and savable(value)
    }


def check_settings(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Refuses to put the state of one optimizer or scheduler into another.

    Lightning would go on with the old rate in silence, or fail with a KeyError.

    Args:
        own: as of ``settings``.
        saved: those of the checkpoint; empty if it does not tell.

    Raises:
        ValueError: naming every difference.
    """
    if not saved:
        return
    differences = []
    for there, here in zip_longest(saved, own, fillvalue={"part": "", "class": "missing"}):
        part = there["part"] or here["part"]
        if (there["part"], there["class"]) != (here["part"], here["class"]):
            differences.append(f"{part} is {there['class']} there but {here['class']} here")
            continue
        for name in sorted(there.keys() & here.keys()):
            one, other = _plain(there[name]), _plain(here[name])
            if not _equal(one, other):
                differences.append(f"{here['class']}'s {name} is {one!r} there but {other!r} here")
    _refuse(differences)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    return bool(one == other)


def _refuse(differences: list[str]) -> None:
    if differences:
        raise ValueError(
            f"The checkpoint is of another configuration: {'; '.join(differences)}. Resume with the configuration "
            "that saved it; to start a new run from its weights, leave out ckpt_path and give the network as "
            "lightning_gp.networks.load_pretrained(network, checkpoint)."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def finish_epoch(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Makes up for the end of the epoch where the checkpoint was saved after its last batch, but before that.

    Lightning resumes from such a checkpoint in the next epoch: the validation, and what callbacks do at the end of the
    epoch, would never happen. Here its counters are put as if validation had been interrupted at its beginning.

    Args:
        checkpoint: whole; changed in place.
        trainer: the Trainer that resumes.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    batches, epochs = loops.get("epoch_loop.batch_progress"), loops.get("epoch_progress")
    if not batches or not epochs or not hasattr(trainer.fit_loop, "restarted_mid_epoch"):
        return
    in_epoch = epochs["total"]["processed"] == epochs["total"]["started"] - 1
    in_batch = batches["total"]["completed"] == batches["total"]["processed"] - 1
    if not (batches["is_last_batch"] and in_batch and in_epoch):
        return
    for counter in (batches["total"], batches["current"]):
        counter["completed"] += 1
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["current"] = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    trainer.callbacks.append(_EpochWithoutValidation())


class _EpochWithoutValidation(Callback):
    """Where no validation is due, lets the interrupted epoch end without another batch."""

    active = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        self.active = not loop._should_check_val_fx(None)
        if self.active:
            loop.val_loop._has_run = True
            loop._batches_that_stepped += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.active:
            trainer.fit_loop.epoch_loop.on_iteration_done()
            self.active = False


def plateau_metrics(trainer: Any) -> dict[str, float]:
    """The metrics that ``ReduceLROnPlateau`` watches, at the moment of saving."""
    watched = [config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    return {name: float(trainer.callback_metrics[name]) for name in watched if name in trainer.callback_metrics}


class PlateauOfResumedEpoch(Callback):
    """Lets ``ReduceLROnPlateau`` see the first epoch after resuming, too, which Lightning leaves out in silence.

    Lightning's reason is that the metrics are not in the checkpoint. Here they are: where the checkpoint was saved
    after the epoch's validation, from there; else as soon as anything has run again.

    Args:
        checkpoint: from which the run resumes.
    """

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        batches, epochs = loops.get("epoch_loop.batch_progress"), loops.get("epoch_progress")
        ended = bool(batches and epochs and batches["is_last_batch"])
        ended = ended and batches["total"]["completed"] == batches["total"]["processed"]
        ended = ended and epochs["total"]["completed"] < epochs["total"]["started"]
        self.metrics = checkpoint.get("plateau_metrics", {}) if ended else {}
        self.epoch = epochs["current"]["completed"] if ended else 0
        self.ran = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        for config in trainer.lr_scheduler_configs:
            due = config.interval == "epoch" and (self.epoch + 1) % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in self.metrics:
                config.scheduler.step(self.metrics[config.monitor])
        self.metrics = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:  # noqa: D102
        self.ran = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        self.ran = self.ran or not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if self.ran:
            trainer.fit_loop._restarting = False
