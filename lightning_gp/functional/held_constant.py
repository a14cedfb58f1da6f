"""What a first-order algorithm holds constant, so that the Jacobian of its update can still be had.

FOMAML's update u(θ) = ∇L(θ_S) takes θ_S = θ − αΣ g for a constant g, so differentiating the objective twice gives
∇²L(θ_S), without the factor (I − αH) that u has: g does change with θ, from one outer step to the next. Inside
``recorded()`` what :func:`constant` holds constant keeps its graph: it gives no gradient while the update is computed,
and passes gradients on while the update itself is differentiated (inside ``passing()``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Parameters


class Recording:
    """Whether anything was held constant while the update was recorded.

    Attributes:
        used: whether the update is no gradient of the objective, because something was.
        passing: whether gradients pass through what was held constant.
    """

    def __init__(self) -> None:
        self.used = False
        self.passing = False


_CURRENT: ContextVar[Recording | None] = ContextVar("recording", default=None)


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, recording: Recording) -> Tensor:  # type: ignore[override]
        ctx.recording = recording
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return (gradient if ctx.recording.passing else None), None


def constant(value: Tensor) -> Tensor:
    """``value.detach()``, except inside ``recorded()``.

    Args:
        value: what the algorithm treats as a constant, of any shape.
    """
    recording = _CURRENT.get()
    if recording is None:
        return value.detach()
    recording.used = True
    held: Tensor = _Held.apply(value, recording)
    return held


def recording_constants() -> bool:
    """Whether constants keep their graph just now, so that what they are made of must be recorded too."""
    return _CURRENT.get() is not None


@contextmanager
def recorded() -> Iterator[Recording]:
    """Records what is held constant inside; the update's own graph is made there.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> with recorded() as recording:
        ...     (update,) = torch.autograd.grad(constant(x) * x, x, create_graph=True)
        >>> update.item()
        3.0
        >>> with passing(recording):
        ...     torch.autograd.grad(update, x)
        (tensor(1.),)
    """
    recording = Recording()
    token = _CURRENT.set(recording)
    try:
        yield recording
    finally:
        _CURRENT.reset(token)


@contextmanager
def passing(recording: Recording) -> Iterator[None]:
    """Lets gradients through what ``recording`` holds constant: to differentiate the update itself.

    Args:
        recording: of the update.
    """
    recording.passing = True
    try:
        yield
    finally:
        recording.passing = False


def prescribed(values: Tensor, parameters: Parameters, gradients: Parameters) -> Tensor:
    """``values`` with a gradient that is given: for updates that are the gradient of no objective.

    Args:
        values: (E,), without a graph.
        parameters: tensors (*shape); those that ``gradients`` does not name get none.
        gradients: of each value, tensors (E, *shape); constants, except while the update is differentiated.

    Returns:
        (E,).

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> loss = prescribed(torch.ones(1), {"w": w}, {"w": torch.tensor([[3.0, 4.0]])})
        >>> loss, torch.autograd.grad(loss, w)
        (tensor([1.], grad_fn=<AddBackward0>), (tensor([3., 4.]),))
    """
    total = values
    for name, gradient in gradients.items():
        moved = parameters[name] - parameters[name].detach()
        total = total + as_rows(constant(gradient) * moved).sum(1)
    return total
