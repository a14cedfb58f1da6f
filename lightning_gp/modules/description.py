"""What a run is, in the few values by which one groups and compares runs in a logger."""

from __future__ import annotations

from typing import Any

from lightning_gp.hyperparameters import plain


def description(module: Any, trainer: Any) -> dict[str, Any]:
    """Algorithm, network, data, outer optimizer and its rate, and how long it trains.

    Args:
        module: with a ``network``, in the hands of ``trainer``.
        trainer: in a fit, with its optimizers.

    Returns:
        Plain values by name; no names of arguments, so that no hyperparameter is replaced.
    """
    data, optimizers = trainer.datamodule, trainer.optimizers
    found: dict[str, Any] = {
        "run/algorithm": type(module).__name__,
        "run/network": type(module.network).__name__,
        "run/parameters": sum(each.numel() for each in module.network.parameters()),
        "run/data": type(data).__name__ if data is not None else "loaders",
        "run/max_epochs": trainer.max_epochs,
        "run/max_steps": trainer.max_steps,
        "run/precision": str(trainer.precision),
        "run/devices": trainer.world_size,
    }
    if optimizers:
        found["run/optimizer"] = type(optimizers[0]).__name__
        found["run/outer_lr"] = plain(optimizers[0].param_groups[0]["lr"])
    return found
