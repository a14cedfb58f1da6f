"""Batch norm by batch statistics on a CPU, whose gradient is cheap to differentiate again.

torch's own second derivative takes some 35 passes over the activations, more than half of a Hessian-vector product of a
convolutional network. Written as below it takes torch's fused gradient twice and a few passes more; the derivative
after that, which torch does not have, is made by operations that autograd differentiates any number of times.

With x̂ = (x − μ)/σ, n examples of a channel, and P(v) = v − mean(v) − x̂ mean(v x̂), the gradients of y = γ x̂ + β are

    ∂x = γ/σ P(g),  ∂γ = Σ g x̂,  ∂β = Σ g.

What arrives for them being u, s and t, the derivative of ⟨u, ∂x⟩ + ⟨s, ∂γ⟩ + ⟨t, ∂β⟩ by g, x and γ is

    γ/σ P(u) + s x̂ + t,   s/σ P(g) − γ/σ² (mean(g x̂) P(u) + mean(u x̂) P(g) + x̂ mean(u P(g))),   Σ u P(g)/σ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp.functional.norms import foreign


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``, and on a CPU by batch statistics the one of this file, which updates running ones too."""
    tensors = [each for each in (input, weight, bias, running_mean, running_var) if each is not None]
    alike = (running_mean is None) == (running_var is None) and len({each.dtype for each in tensors}) == 1
    known = training and alike and input.numel() > input.shape[1]
    if not known or not torch.is_grad_enabled() or any(map(foreign, tensors)):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return result


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, rstd = ctx.saved_tensors
        gx, gw, gb = _Gradient.apply(g, x, weight, mean, rstd, ctx.eps)
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        return gx, gw if has_weight else None, gb if has_bias else None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """∂x, ∂γ and ∂β of y, given g."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, x, weight, mean, rstd)
        ctx.eps = eps
        gx, gw, gb = _fused(g, x, weight, mean, rstd, eps)
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, u: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        g, x, weight, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _written_out(u, s, t, g, x, weight, ctx.eps)
        else:
            found = _second(u, s, t, g, x, weight, mean, rstd, ctx.eps)
        return *found[:2], found[2] if weight is not None else None, None, None, None


def _fused(g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float) -> Any:
    if g.stride() != x.stride():  # torch takes ten times as long where one has its channels last and the other has not
        g = torch.empty_like(x).copy_(g)
    return torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )


def _second(
    u: Tensor,
    s: Tensor,
    t: Tensor,
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives by g, x and γ, in few passes."""
    shape, count = [1, -1] + [1] * (x.ndim - 2), x.numel() // x.shape[1]
    pu, ux, _ = _fused(u, x, None, mean, rstd, eps)  # P(u)/σ, Σ u x̂
    pg, gx, _ = _fused(g, x, None, mean, rstd, eps)  # P(g)/σ, Σ g x̂
    upg = _sums(u, pg)  # Σ u P(g)/σ
    scale = rstd if weight is None else rstd * weight
    # In terms of x, P(u)/σ and P(g)/σ, each result is a combination with numbers per channel.
    by_x = s * rstd
    constant = t - by_x * mean
    by_g = torch.addcmul(constant.view(shape), x, by_x.view(shape))
    by_g.addcmul_(pu, torch.ones_like(scale).view(shape) if weight is None else weight.view(shape))
    along = -scale * upg * rstd / count  # of x̂ in units of x
    result = torch.addcmul((-along * mean).view(shape), x, along.view(shape))
    result.addcmul_(pu, (-scale * gx / count).view(shape))
    result.addcmul_(pg, (s - scale * ux / count).view(shape))
    return by_g, result, upg


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ a b over all axes but the second, (C,)."""
    return (a * b).sum([0, *range(2, a.ndim)])


def _written_out(
    u: Tensor, s: Tensor, t: Tensor, g: Tensor, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, differentiable."""
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)

    def mean(value: Tensor) -> Tensor:
        return value.mean(axes, keepdim=True)

    centered = x - mean(x)
    rstd = (mean(centered.square()) + eps).rsqrt()
    normal = centered * rstd
    ux, gx = mean(u * normal), mean(g * normal)
    pu, pg = u - mean(u) - normal * ux, g - mean(g) - normal * gx
    scale = rstd if weight is None else rstd * weight.view(shape)
    s, upg = s.view(shape), u * pg
    by_g = scale * pu + s * normal + t.view(shape)
    by_x = rstd * (s * pg - scale * (gx * pu + ux * pg + normal * mean(upg)))
    return by_g, by_x, (upg * rstd).sum(axes)
