from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gp.networks import Conv4, SinusoidMLP, select_parameters, use_batch_statistics
from lightning_gp.networks.parts import running_statistics


@pytest.mark.parametrize("downsample", ["max_pool", "stride"])
@pytest.mark.parametrize(("size", "channels", "colours"), [(28, 64, 1), (84, 32, 3)])
def test_conv4_shapes(size, channels, colours, downsample):
    network = Conv4(5, channels, colours, size, downsample)
    assert network(torch.zeros(2, colours, size, size)).shape == (2, 5)
    assert not running_statistics(network)


def test_relu_commutes_with_pooling():
    """The order convolution, norm, pool, ReLU is that of the papers (ReLU before the pool) to the last bit."""
    torch.manual_seed(0)
    network, x = Conv4(5, channels=8), torch.rand(10, 1, 28, 28)
    hidden = x
    for convolution, norm, pool, relu in list(network.body)[:4]:
        hidden = pool(relu(norm(convolution(hidden))))
    assert torch.equal(network.head(hidden.flatten(1)), network(x))


def test_evaluation_mode_changes_nothing():
    network, x = Conv4(5, channels=8), torch.rand(10, 1, 28, 28)
    assert torch.equal(network.train()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 0}, "ways=0"),
        ({"ways": 5, "channels": 0}, "channels=0"),
        ({"ways": 5, "image_size": 10}, "image_size=10.*16"),
        ({"ways": 5, "downsample": "mean"}, "downsample='mean'.*max_pool"),
    ],
)
def test_conv4_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Conv4(**arguments)


def test_parts():
    network = SinusoidMLP()
    names = [name for name, _ in network.named_parameters()]
    assert select_parameters(network, "all") == names
    assert select_parameters(network, "head") == ["head.weight", "head.bias"]
    assert select_parameters(network, "body") == names[:-2]
    assert select_parameters(network, ["head.bias", "body.0"]) == ["body.0.weight", "body.0.bias", "head.bias"]
    assert select_parameters(network, lambda name: name.endswith("bias")) == names[1::2]
    network.body.requires_grad_(False)
    assert select_parameters(network, "all") == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("head", r"submodule named 'head'.*\['0'\].*predicate"),
        (["fc"], r"adapt=\['fc'\] names \['fc'\], which begin no parameter's name.*0.weight"),
        ("boddy", "adapt='boddy' picks none.*0.weight"),
        (lambda name: False, "picks none"),
    ],
)
def test_unknown_parts_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(nn.Sequential(nn.Linear(1, 1)), choice)


def test_batch_statistics():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    assert running_statistics(network) == ["1"]
    x = torch.rand(4, 1, 28, 28)
    expected = network.train()(x)
    assert use_batch_statistics(network) is network
    assert not running_statistics(network)
    torch.testing.assert_close(network.eval()(x), expected)
