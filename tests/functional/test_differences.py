"""Eigenvalues by differences of gradients: right on smooth networks, NaN where they see kinks, in both precisions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.functional.differences import eigenvalues_by_differences


def network(activation, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3))


def both(net, examples, dtype, tol):
    """What differences find in a precision, and the eigenvalues of the dense Hessian."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (examples,), generator=generator)
    net = net.to(dtype)
    parameters = dict(net.named_parameters())
    shapes = {name: each.shape for name, each in parameters.items()}
    theta = torch.cat([each.detach().reshape(-1) for each in parameters.values()])

    def loss(flat, inputs):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        given = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, given, inputs), y)

    def gradient(vector, step):
        return torch.func.grad(loss)(theta if vector is None else theta + step * vector, x.to(dtype))

    found = eigenvalues_by_differences(gradient, float(theta.norm()), 2, tol)
    hessian = torch.func.hessian(loss)(theta.double(), x)
    return found, torch.linalg.eigvalsh(hessian).flip(0)[:2]


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-3), (torch.float32, 1e-3)], ids=str)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_smooth_networks_have_the_eigenvalues_of_the_dense_hessian(activation, dtype, tol):
    found, exact = both(network(activation), 64, dtype, tol)
    assert found.converged
    torch.testing.assert_close(found.values, exact, rtol=tol, atol=0)
    assert bool((found.residuals <= math.sqrt(tol) * exact).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("examples", [8, 512])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_kinks_give_nan_or_the_right_number(examples, dtype, tol):
    found, exact = both(network(nn.ReLU), examples, dtype, tol)
    for value, right in zip(found.values.tolist(), exact.tolist(), strict=True):
        assert math.isnan(value) or value == pytest.approx(right, rel=tol)
    assert found.converged == bool(found.values.isfinite().all())
    if examples > 8:  # the kinks are felt
        assert not found.converged


def test_a_stationary_point_and_an_infinite_gradient():
    diagonal = torch.tensor([5.0, 2.0, -1.0, 0.5], dtype=torch.float64)

    def at_minimum(vector, step):
        return torch.zeros(4, dtype=torch.float64) if vector is None else step * diagonal * vector

    found = eigenvalues_by_differences(at_minimum, 0.0, 2, 1e-6)
    assert found.values.tolist() == pytest.approx([5, 2], rel=1e-6)
    nothing = eigenvalues_by_differences(lambda vector, step: torch.full((4,), math.nan), 1.0, 2, 1e-3)
    assert not nothing.converged
    assert bool(nothing.values.isnan().all())


def test_a_map_that_is_not_symmetric_is_not_believed():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    matrix[0, 1:] = 2.0
    found = eigenvalues_by_differences(lambda v, h: matrix.sum(1) if v is None else h * (matrix @ v), 1.0, 2, 1e-3)
    assert bool(found.values.isnan().any())
