"""Arguments that checkpoints do not hold: noted by name, so that none of them goes back to its default in silence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

TRAINING_ONLY = ("optimizer", "lr_scheduler")
"""What a test does without."""


def unsaved_arguments(module: Any) -> dict[str, str]:
    """The arguments of a module that were given and are not among its hyperparameters, in words.

    An argument is seen where the module keeps it under its own name; one that is equal to its default was not given.

    Args:
        module: an ``EnvironmentModule``.

    Returns:
        A description of each by name, such as ``{"criterion": "torch.nn.functional.mse_loss"}``.
    """
    found: dict[str, str] = {}
    for kind in type(module).__mro__:
        own = vars(kind).get("__init__")
        for name, parameter in inspect.signature(own).parameters.items() if own else ():
            kept = {**module.__dict__, **module.__dict__["_modules"]}
            if name in found or name in module.hparams or name not in kept:
                continue
            value, default = kept[name], parameter.default
            if default is not inspect.Parameter.empty and value is not default and value is not None:
                found[name] = described(value)
    return found


def described(value: Any) -> str:
    """A function by its home, anything else as it is printed, without addresses."""
    if isinstance(value, partial):
        arguments = [*map(described, value.args), *(f"{key}={described(v)}" for key, v in value.keywords.items())]
        return f"{described(value.func)}({', '.join(arguments)})"
    if isinstance(value, nn.Module):
        return " ".join(str(value).split())
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return repr(value) if isinstance(value, (bool, int, float, str, tuple, list, dict)) else type(value).__qualname__


def missing_arguments(module: Any, saved: Mapping[str, str]) -> dict[str, str]:
    """Those that the saving module had and this one has not."""
    own = unsaved_arguments(module)
    return {name: text for name, text in saved.items() if name not in own}


def check_given(module: Any, saved: Mapping[str, str]) -> dict[str, str]:
    """Refuses to load a module without what the saving one was given, as it would compute other numbers.

    Args:
        module: what is loaded into.
        saved: from ``unsaved_arguments`` of the module that was saved.

    Returns:
        What only training needs and is missing; a test does without.

    Raises:
        ValueError: naming each argument that is missing and what it was.
    """
    missing = missing_arguments(module, saved)
    needed = {name: text for name, text in missing.items() if name not in TRAINING_ONLY}
    if needed:
        raise ValueError(refusal(type(module).__name__, needed))
    return missing


def refusal(kind: str, missing: Mapping[str, str]) -> str:
    """What to say of missing arguments."""
    each = ", ".join(f"{name}={text}" for name, text in missing.items())
    names = ", ".join(f"{name}=..." for name in missing)
    return (
        f"The checkpoint is of a {kind} that was given {each}, which no checkpoint holds; with the default it would "
        f"compute other numbers. Give it again: {kind}.load_from_checkpoint(path, network=..., {names})."
    )


def optimizer_settings(optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Class and constructor arguments of each optimizer, as plain numbers and words; schedulers do not change them."""
    settings = []
    for optimizer in optimizers:
        plain = {name: _plain(value) for name, value in optimizer.defaults.items()}
        settings.append({"class": type(optimizer).__name__, **plain})
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def check_optimizers(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Refuses to go on with other optimizers, or other settings of them, than the saved ones.

    A resumed optimizer takes its settings from the checkpoint, and what the configuration says now would be ignored.

    Raises:
        ValueError: naming each difference, and how to start a new run from the weights.
    """
    differences = []
    if len(own) != len(saved):
        differences.append(f"{len(saved)} optimizers there, {len(own)} here")
    for mine, theirs in zip(own, saved, strict=False):
        if mine["class"] != theirs["class"]:
            differences.append(f"the optimizer is {theirs['class']} there but {mine['class']} here")
            continue
        for name in sorted(mine.keys() & theirs.keys()):
            if mine[name] != theirs[name]:
                differences.append(f"{mine['class']}'s {name} is {theirs[name]!r} there but {mine[name]!r} here")
    if differences:
        raise ValueError(
            f"The checkpoint is of another optimization: {'; '.join(differences)}. A resumed optimizer goes on with "
            "the saved settings. Resume with them; to train on with others, start a new run from the weights: leave "
            "out ckpt_path and give the network as lightning_gp.networks.load_pretrained(network, checkpoint)."
        )
