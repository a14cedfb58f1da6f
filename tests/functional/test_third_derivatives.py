"""The Hessian of an objective that holds a gradient, through every layer that torch has; norms written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.norms import WrittenOutNorms
from lightning_gp.functional.update_curvature import UpdateJacobian


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


IMAGE, SERIES, ROW = (3, 4, 6, 6), (3, 5, 4), (6, 4)
LAYERS = {
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), ROW),
    "batch norm of images": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), IMAGE),
    "instance norm": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.InstanceNorm2d(3, affine=True)), IMAGE),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), IMAGE),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), SERIES),
    "layer norm without weights": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((5, 4), elementwise_affine=False)),
        SERIES,
    ),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), SERIES),
    "convolution": (lambda: nn.Conv2d(4, 2, 3), IMAGE),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 2, 3), IMAGE),
    "linear, pooled": (lambda: nn.Sequential(nn.Linear(6, 5), nn.MaxPool2d(2)), IMAGE),
    "LSTM": (lambda: Recurrent(nn.LSTM), SERIES),
    "GRU": (lambda: Recurrent(nn.GRU), SERIES),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu"), SERIES),
    "bilinear": (lambda: nn.Sequential(nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_hessian_of_a_gradient_penalty_is_that_of_differences(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double()
    x = torch.randn(shape, dtype=torch.float64)

    def objective(parameters):
        out = torch.func.functional_call(layer, parameters, (x,))
        loss = (out.tanh() - 0.3).square().mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return loss + 0.5 * torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    parameters = {key: value.detach() for key, value in layer.named_parameters()}
    with plain_kernels(second_order=True):
        jacobian = UpdateJacobian(objective, parameters)
        v = torch.randn(jacobian.size, dtype=torch.float64)
        moved = []
        for sign in (1, -1):
            theta, start = {}, 0
            for key, value in parameters.items():
                theta[key] = value + sign * 1e-5 * v[start : start + value.numel()].view_as(value)
                start += value.numel()
            moved.append(UpdateJacobian(objective, theta).update)
    expected = (moved[0] - moved[1]) / 2e-5
    found = jacobian(v)
    assert float((found - expected).norm()) < 1e-6 * float(expected.norm())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.BatchNorm1d(4, momentum=0.3), ROW),
        (lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False), (3, 4, 5)),
        (lambda: nn.BatchNorm2d(4, eps=0.1), IMAGE),
        (lambda: nn.InstanceNorm2d(4), IMAGE),
        (lambda: nn.LayerNorm((4, 6, 6), eps=0.1), IMAGE),
        (lambda: nn.LayerNorm(6, elementwise_affine=False), IMAGE),
        (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_written_out_norms_are_those_of_torch(build, shape, training):
    torch.manual_seed(0)
    layer = build().double().train(training)
    own = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64)
    expected = layer(x)
    with WrittenOutNorms():
        found = own(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, value in layer.named_buffers():
        torch.testing.assert_close(dict(own.named_buffers())[name], value, rtol=1e-12, atol=1e-12)


def test_an_own_norm_that_cannot_be_replaced_is_refused():
    x = torch.randn(3, 4)

    def objective(p):
        loss = torch.native_layer_norm(x * p["w"], [4], None, None, 1e-5)[0].square().mean()
        return torch.autograd.grad(loss, p["w"], create_graph=True)[0].square().sum()

    with pytest.raises(RuntimeError, match=r"use nn\.BatchNorm, nn\.LayerNorm"):
        UpdateJacobian(objective, {"w": torch.ones(4)})


def test_written_out_norms_are_vectorised():
    x = torch.randn(5, 6, 4)
    with WrittenOutNorms():
        found = torch.vmap(lambda one: F.batch_norm(one, None, None, training=True))(x)
    torch.testing.assert_close(found, torch.stack([F.batch_norm(one, None, None, training=True) for one in x]))
