"""Batch norm whose gradient is cheap to differentiate again, against torch's own and finite differences."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from lightning_gp.functional.cheap_layers import CheapLayers

SHAPES = [(6, 3), (4, 3, 5), (5, 2, 3, 4), (3, 2, 2, 3, 2)]


def inputs(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, dtype=dtype, generator=generator).requires_grad_()

    return normal(*shape), normal(shape[1]), normal(shape[1])


def cheap(x, weight=None, bias=None, eps=1e-2):
    with CheapLayers():
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def own(x, weight=None, bias=None, eps=1e-2):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def gradients(norm, tensors):
    return torch.autograd.grad(norm(*tensors).tanh().square().sum(), tensors, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_bitwise_those_of_torch(shape, dtype):
    tensors = inputs(shape, dtype)
    assert torch.equal(cheap(*tensors), own(*tensors))
    for mine, other in zip(gradients(cheap, tensors), gradients(own, tensors), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("which", [(0,), (0, 1), (0, 2), (0, 1, 2)], ids=["plain", "weight", "bias", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_second_derivatives(shape, which):
    every = inputs(shape)
    tensors = [every[i] for i in which]

    def norm(kind):
        def of(*given):
            named = dict(zip(which, given, strict=True))
            return kind(named[0], named.get(1), named.get(2)).tanh()

        return of

    assert torch.autograd.gradgradcheck(norm(cheap), tensors)
    if which == (0, 2):
        return  # torch's own cannot be differentiated twice with a bias and no weight
    found = []
    for kind in (cheap, own):
        first = torch.autograd.grad(norm(kind)(*tensors).square().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(each.sin().sum() for each in first), tensors))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_third_derivatives(shape):
    tensors = inputs(shape)

    def norm_of_gradient(*given):
        first = torch.autograd.grad(cheap(*given).tanh().square().sum(), given, create_graph=True)
        return sum(each.sin().sum() for each in first)

    assert torch.autograd.gradgradcheck(norm_of_gradient, tensors)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda x: (x, torch.zeros(3), torch.ones(3)),
        lambda x: (x.bfloat16(), None, None, None, None, True),
    ],
    ids=["by running statistics", "half precision"],
)
def test_everything_else_is_torch_own(arguments):
    x = inputs((6, 3))[0]
    given = arguments(x.float() if len(arguments(x)) == 3 else x)
    with CheapLayers():
        result = F.batch_norm(*given)
    assert "_BatchNorm" not in result.grad_fn.name()
    assert torch.equal(result, F.batch_norm(*arguments(x.float() if len(given) == 3 else x)))


def test_running_statistics_are_updated_as_torch_does():
    x, weight, bias = inputs((6, 3))
    kept = {}
    for name, context in (("cheap", CheapLayers()), ("own", nullcontext())):
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        with context:
            result = F.batch_norm(x, mean, var, weight, bias, True, 0.3, 1e-2)
        assert ("_BatchNorm" in result.grad_fn.name()) == (name == "cheap")
        gradients = torch.autograd.grad(result.tanh().square().sum(), [x, weight, bias])
        kept[name] = [result, mean, var, *gradients]
    for mine, other in zip(*kept.values(), strict=True):
        assert torch.equal(mine, other)


def test_vmap_takes_torch_own():
    x = torch.randn(4, 6, 3)
    with CheapLayers():
        together = torch.vmap(lambda each: F.batch_norm(each, None, None, training=True))(x)
    torch.testing.assert_close(together[2], F.batch_norm(x[2], None, None, training=True))
