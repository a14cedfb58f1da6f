"""Convolutions whose gradient is cheap to differentiate again, against torch's own and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.functional.cheap_layers import CheapLayers, cheap_layers

# name -> function, shapes of images, kernel and bias, options
CASES = {
    "1-d": (F.conv1d, [(2, 3, 7), (4, 3, 3), (4,)], {"padding": 1}),
    "2-d": (F.conv2d, [(2, 3, 5, 4), (2, 3, 3, 2), (2,)], {}),
    "stride": (F.conv2d, [(2, 2, 6, 5), (3, 2, 3, 3), (3,)], {"stride": 2, "padding": (1, 0)}),
    "dilation": (F.conv2d, [(1, 2, 6, 6), (2, 2, 2, 2), (2,)], {"dilation": (2, 3)}),
    "groups": (F.conv2d, [(2, 4, 4, 4), (4, 2, 3, 3), (4,)], {"groups": 2, "padding": 1}),
    "no bias": (F.conv2d, [(2, 2, 4, 4), (3, 2, 3, 3)], {"stride": (1, 2)}),
    "3-d": (F.conv3d, [(1, 2, 3, 3, 4), (2, 2, 2, 2, 2), (2,)], {"padding": 1}),
}


def inputs(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*size, dtype=dtype, generator=generator).requires_grad_() for size in CASES[case][1]]


def own(case):
    function, _, options = CASES[case]
    return lambda *tensors: function(*tensors, **options)


def cheap(case):
    def inside(*tensors):
        with CheapLayers():
            result = own(case)(*tensors)
        assert "_Convolution" in result.grad_fn.name()
        return result

    return inside


def gradients(function, tensors, wanted):
    return torch.autograd.grad(function(*tensors).tanh().square().sum(), wanted, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_bitwise_those_of_torch(case, dtype):
    tensors = inputs(case, dtype)
    assert torch.equal(cheap(case)(*tensors), own(case)(*tensors))
    for mine, other in zip(
        gradients(cheap(case), tensors, tensors[:2]), gradients(own(case), tensors, tensors[:2]), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(case, which):
    tensors = inputs(case)
    wanted = [tensors[i] for i in which if i < len(tensors)]
    found = []
    for kind in (cheap, own):
        first = gradients(kind(case), tensors, wanted)
        found.append(torch.autograd.grad(sum(each.sin().sum() for each in first), tensors))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", ["1-d", "stride", "groups", "no bias"])
def test_second_derivatives_by_finite_differences(case):
    assert torch.autograd.gradgradcheck(lambda *tensors: cheap(case)(*tensors).tanh(), inputs(case))


@pytest.mark.parametrize("case", ["1-d", "dilation"])
def test_third_derivatives(case):
    def norm_of_gradient(*given):
        return sum(each.sin().sum() for each in gradients(cheap(case), given, given))

    assert torch.autograd.gradgradcheck(norm_of_gradient, inputs(case))


def test_kernel_whose_gradient_is_not_wanted():
    images, kernel, bias = inputs("2-d")
    (by_images,) = gradients(cheap("2-d"), [images, kernel.detach(), bias], [images])
    (other,) = gradients(own("2-d"), [images, kernel.detach(), bias], [images])
    assert torch.equal(by_images, other)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_torch_own(padding):
    images, kernel, bias = inputs("stride")
    with CheapLayers():
        result = F.conv2d(images, kernel, bias, padding=padding)
    assert "_Convolution" not in result.grad_fn.name()


def test_autocast_is_torch_own():
    images, kernel, bias = inputs("stride", torch.float32)
    with CheapLayers(), torch.autocast("cpu", torch.bfloat16):
        result = F.conv2d(images, kernel, bias)
    assert result.dtype == torch.bfloat16


def test_one_image_without_its_axis_and_half_precision_are_torch_own():
    images, kernel, bias = inputs("2-d")
    with CheapLayers():
        assert "_Convolution" not in F.conv2d(images[0], kernel, bias).grad_fn.name()
        half = F.conv2d(images.bfloat16(), kernel.bfloat16(), bias.bfloat16())
    assert "_Convolution" not in half.grad_fn.name()


def test_vmap_takes_torch_own():
    images, kernel, bias = inputs("2-d")
    kernels = torch.stack([kernel, 2 * kernel])
    with CheapLayers():
        together = torch.vmap(lambda each: F.conv2d(images, each, bias))(kernels)
    torch.testing.assert_close(together[1], F.conv2d(images, 2 * kernel, bias))


def test_other_memory_formats():
    tensors = [each.detach() for each in inputs("2-d")]
    images, kernel = (each.to(memory_format=torch.channels_last).requires_grad_() for each in tensors[:2])
    mixed = [images, tensors[1].requires_grad_(), tensors[2].requires_grad_()]
    for given in (mixed, [tensors[0].requires_grad_(), kernel, mixed[2]]):
        found = []
        for kind in (cheap, own):
            first = gradients(kind("2-d"), given, given)
            found.append(torch.autograd.grad(sum(each.sin().sum() for each in first), given))
        for mine, other in zip(*found, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)], ids=str)
def test_networks_without_such_layers_are_left_alone(layer):
    assert not isinstance(cheap_layers(nn.Linear(3, 3)), CheapLayers)
    assert isinstance(cheap_layers(layer), CheapLayers)
