"""Convolutions on a CPU whose gradient is cheap to differentiate again.

torch's own second derivative takes the weights' part as a convolution with kernels as large as the images, and returns
it in another memory format: some two and a half times the time of the four convolutions that it needs. For y = x ∗ w
the gradients ∂x = g ⋆ w and ∂w = g ⋆ x are bilinear. What arrives for them being u and s, the derivative of
⟨u, g ⋆ w⟩ + ⟨s, g ⋆ x⟩ by g, x and w is

    u ∗ w + x ∗ s,   g ⋆ s,   g ⋆ u,

convolutions and gradients of convolutions again, so that it can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp.functional.norms import foreign


class _How(NamedTuple):
    """Where the kernel is put."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def cheap_convolutions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Each convolution of torch -> the one of this file."""
    return {F.conv1d: _replacing(F.conv1d, 1), F.conv2d: _replacing(F.conv2d, 2), F.conv3d: _replacing(F.conv3d, 3)}


def _replacing(own: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    def every(number: int | tuple[int, ...] | list[int]) -> list[int]:
        numbers = [number] if isinstance(number, int) else list(number)
        return numbers * axes if len(numbers) == 1 else numbers

    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        tensors = [each for each in (input, weight, bias) if each is not None]
        known = input.ndim == axes + 2 and not isinstance(padding, str) and len({each.dtype for each in tensors}) == 1
        needed = torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if not known or not needed or any(map(foreign, tensors)):
            return own(input, weight, bias, stride, padding, dilation, groups)
        how = _How(every(stride), every(padding), every(dilation), groups)
        result: Tensor = _Convolution.apply(input, weight, bias, how)
        return result

    return convolution


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, how: _How) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return torch.convolution(
            x, w, bias, how.stride, how.padding, how.dilation, False, [0] * len(how.stride), how.groups
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        by_x, by_w, by_bias, _ = ctx.needs_input_grad
        gx, gw = _Gradient.apply(g, x, w, ctx.how, by_x, by_w)
        return gx, gw, g.sum([0, *range(2, g.ndim)]) if by_bias else None, None


class _Gradient(torch.autograd.Function):
    """∂x and ∂w of y, given g; None where it is not asked for."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, how: _How, by_x: bool, by_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, w)
        ctx.how = how
        ctx.set_materialize_grads(False)
        gx, gw, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, *how[:3], False, [0] * len(how.stride), how.groups, [by_x, by_w, False]
        )
        return gx, gw

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, s: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        g, x, w = ctx.saved_tensors
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        by_g = None
        if needs_g:
            parts = [(u, w)] * (u is not None) + [(x, s)] * (s is not None)
            values = [_Convolution.apply(image, kernel, None, ctx.how) for image, kernel in parts]
            by_g = values[0] if len(values) == 1 else values[0] + values[1] if values else None
        by_x = _Gradient.apply(g, x, s, ctx.how, True, False)[0] if needs_x and s is not None else None
        by_w = _Gradient.apply(g, u, w, ctx.how, False, True)[1] if needs_w and u is not None else None
        return by_g, by_x, by_w, None, None, None
