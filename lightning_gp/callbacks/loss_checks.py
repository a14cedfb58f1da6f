"""What a loss must be so that a probe can differentiate it."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = ("training_step", "validation_step", "test_step")
"""Of any module; the loss of each is one number."""
THREE_WAYS = (
    "A probe finds a loss in one of three ways: (1) loss_fn=..., given to the callback, a function of (module, batch) "
    "that returns a scalar or one loss per environment; (2) a method environment_losses(parameters, environments, "
    "split) of the module; (3) the module's own training_step, if it uses automatic optimization; in evaluation the "
    "loss that its validation_step or test_step returns."
)


def refuse_reentrant(losses: Tensor, name: str) -> None:
    """Refuses reentrant activation checkpointing anywhere in the graph of the losses.

    Raises:
        ValueError: naming the way out.
    """
    pending = [losses.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                f"{name} uses reentrant activation checkpointing, through which autograd gives no gradient by chosen "
                "parameters, but zeros. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        following = {child for child, _ in node.next_functions} - seen
        seen |= following
        pending.extend(following)


def checked(losses: object, name: str, environments: int | None = None) -> Tensor:
    """``losses`` in at least float32, if they are what was asked for: one for each of so many environments."""
    if not isinstance(losses, Tensor):
        raise ValueError(f"{name} returned {type(losses).__name__}; a probe needs a scalar loss tensor. {THREE_WAYS}")
    if name in STEPS and losses.numel() == 1:
        losses = losses.reshape(())
    if losses.ndim > (0 if name in STEPS else 1) or losses.numel() == 0:
        allowed = "a scalar" if name in STEPS else "a scalar, or one loss per environment (E,)"
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(losses.shape)}; allowed is {allowed}: take its mean. "
            f"{THREE_WAYS}"
        )
    if environments is not None and losses.shape != (environments,):
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(losses.shape)} for {environments} environments; it must return "
            f"one loss per environment, shape ({environments},): take the mean over examples, not over environments."
        )
    if not losses.requires_grad:
        raise ValueError(
            f"The loss that {name} returned does not depend on the module's trainable parameters: there is nothing to "
            "measure. Compute it from them, without detach(), no_grad() or .item(), or pass another loss_fn=."
        )
    half = losses.dtype in (torch.float16, torch.bfloat16)
    return losses.float() if half else losses
