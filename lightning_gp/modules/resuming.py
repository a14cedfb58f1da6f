"""Resuming a fit: which checkpoint is refused, and the end of an epoch that came after it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gp._lightning import Callback
from lightning_gp.modules.given import TRAINING_ONLY, check_optimizers, optimizer_settings
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


def check_configuration(algorithm: str, arguments: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Refuses to continue a run under another algorithm or with other arguments of it.

    Args:
        algorithm: name of the module's class.
        arguments: its hyperparameters.
        checkpoint: as saved; what it does not tell is not compared.

    Raises:
        ValueError: naming every difference, and how to start a new run from the weights.
    """
    differences = []
    if checkpoint.get("algorithm", algorithm) != algorithm:
        differences.append(f"the algorithm is {checkpoint['algorithm']} there but {algorithm} here")
    saved = {**checkpoint.get("hyper_parameters", {}), **checkpoint.get("given", {})}
    for name in sorted(set(arguments) & set(saved) - {*FREE, *TRAINING_ONLY}):  # optimizers are compared by themselves
        if not name.startswith("_") and _plain(saved[name]) != _plain(arguments[name]):
            differences.append(f"{name} is {saved[name]!r} there but {arguments[name]!r} here")
    if differences:
        raise ValueError(
            f"The checkpoint is of another configuration: {'; '.join(differences)}. Resume with the configuration "
            "that saved it; to start a new run from its weights, leave out ckpt_path and give the network as "
            "lightning_gp.networks.load_pretrained(network, checkpoint)."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def resume_optimizers(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Compares the optimizers, once they are built, with those that the checkpoint was saved with.

    Raises:
        ValueError: see ``check_optimizers``; before anything of the checkpoint is put into them.
    """
    if checkpoint.get("optimizer_settings"):
        trainer.callbacks.append(_SameOptimizers(checkpoint["optimizer_settings"]))


class _SameOptimizers(Callback):
    def __init__(self, saved: list[dict[str, Any]]) -> None:
        self.saved: list[dict[str, Any]] | None = saved

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.saved is not None:  # a second fit of this Trainer is another matter
            check_optimizers(optimizer_settings(trainer.optimizers), self.saved)
        self.saved = None


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
