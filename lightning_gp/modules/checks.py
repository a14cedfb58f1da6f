"""What is refused before training starts, each with the way out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_gp._lightning import Trainer
from lightning_gp.contracts import Adapts, Dealt, dealt_by
from lightning_gp.networks.parts import running_statistics


class Checked(Protocol):
    """What is asked of a module."""

    handles: tuple[Dealt, ...]
    _compiler_ctx: Any

    @property
    def second_order(self) -> bool: ...  # noqa: D102
    @property
    def aggregates(self) -> bool: ...  # noqa: D102


def check_network(network: nn.Module) -> None:
    """Refuses networks that keep running statistics or cannot be trained.

    Raises:
        TypeError: if ``network`` is not a module, or one that cannot run with other parameters than its own.
        ValueError: if it has a parameter without a shape, no trainable parameter, or normalisation layers with running
            statistics.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)):
        raise TypeError(
            f"network is a {type(network).__name__}, which runs with its own parameters alone; give the network that "
            "is inside it. Lightning's devices= and compile=True do what it is for."
        )
    lazy = [name for name, each in network.named_parameters() if isinstance(each, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{type(network).__name__} does not know the shape of {', '.join(lazy)} yet (lazy layers); call it once on "
            "one environment's inputs before handing it over."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has no parameter that requires a gradient; there is nothing to train."
        )
    layers = running_statistics(network)
    if layers:
        raise ValueError(
            f"{type(network).__name__} keeps running statistics in {', '.join(layers)}: shared by all "
            "environments, they would make every number depend on the order of the inner loops. Build these with "
            "track_running_stats=False, or call lightning_gp.networks.use_batch_statistics(network) first."
        )


def check_trainer(module: Checked, trainer: Trainer, data: object) -> None:
    """Refuses the strategies and precisions under which second-order gradients break or silently underflow.

    Also refused: data that are dealt to processes in a way that the module does not handle, and modules inside
    ``torch.compile`` that compute gradients as a part of their training step.

    Raises:
        ValueError: naming the setting and what to use instead.
    """
    dealt = dealt_by(data)
    handled = handled_by(module)
    if trainer.world_size > 1 and dealt not in handled:
        each = "whole environments of its own" if dealt == "episodes" else "a share of every environment"
        raise ValueError(
            f"{type(data).__name__} gives each of the {trainer.world_size} devices {each} (dealt={dealt!r}), but "
            f"{type(module).__name__} handles {' or '.join(map(repr, handled))} only: its gradient would be "
            "wrong. Use one device, other data, or a module that handles it (ERM, IRMv1, REx, GradientPenalty)."
        )
    compiled = module._compiler_ctx is not None
    inside = module.second_order or module.aggregates
    if compiled and (inside or isinstance(module, Adapts)):
        raise ValueError(
            f"torch.compile cannot compile the training step of {type(module).__name__}, which computes gradients "
            "itself. Give the Trainer the module as it is; MAML, FOMAML, ANIL and BOIL have compile=True."
        )
    if not inside:
        return
    strategy = type(trainer.strategy).__name__
    if any(name in strategy for name in ("FSDP", "DeepSpeed", "ModelParallel")):
        raise ValueError(
            f"{strategy} shards parameters, and gradients of gradients, or of one environment after the other, through "
            "shards are broken in torch. Use strategy='ddp', or a first-order algorithm (first_order=True)."
        )
    if str(trainer.precision) == "16-mixed":
        raise ValueError(
            "precision='16-mixed' scales the outer loss only; gradients inside the step underflow unnoticed. Use "
            "'bf16-mixed' or '32-true', or a first-order algorithm (first_order=True)."
        )


OBJECTIVE = {
    *("environment_objectives", "environment_terms", "training_terms", "training_loss"),
    *("penalties", "batch_terms", "aggregate", "statistic"),
}


def handled_by(module: Checked) -> tuple[Dealt, ...]:
    """How data may be dealt to a module; what a class declares does not hold for another objective in a subclass."""
    for kind in type(module).__mro__:
        if "handles" in vars(kind):
            break
        if OBJECTIVE & set(vars(kind)):
            return ("episodes",)
    return module.handles
