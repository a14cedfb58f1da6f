"""Trace, Frobenius norm, spectral density and third-order operators against dense matrices."""

import math

import pytest
import torch

from lightning_gp.functional.hessian_product import hessian_vector_product
from lightning_gp.functional.lanczos import leading_eigenpairs
from lightning_gp.functional.spectrum import frobenius_norm, spectral_density, trace
from lightning_gp.functional.third_order import third_order_operators

SIZE = 40


def operator(scale=1.0):
    torch.manual_seed(0)
    factor = torch.randn(SIZE, SIZE, dtype=torch.float64)
    matrix = scale * (factor + factor.T + 5 * torch.diag(torch.arange(SIZE)))
    product = hessian_vector_product(lambda p: p["w"] @ matrix @ p["w"] / 2, {"w": torch.ones(SIZE).double()})
    return product, matrix


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_trace(method):
    product, matrix = operator()
    estimates = [trace(product, 30, method=method, seed=seed) for seed in range(30)]
    z = torch.tensor([(e.value - float(matrix.trace())) / e.standard_error for e in estimates])
    assert all(e.products == 30 for e in estimates)
    assert abs(float(z.mean())) < 4 / math.sqrt(30)  # unbiased, and
    assert 0.6 < float(z.std()) < 1.8  # the standard error is what it says
    assert trace(product, 30, method=method, seed=3) == estimates[3]


def test_trace_is_exact_when_the_sketch_spans_the_space():
    product, matrix = operator()
    estimate = trace(product, 3 * SIZE)
    assert estimate.standard_error == 0.0
    assert estimate.value == pytest.approx(float(matrix.trace()), rel=1e-10)


def test_frobenius_norm():
    product, matrix = operator()
    estimate = frobenius_norm(product, 500)
    assert abs(estimate.value - float(matrix.norm())) < 4 * estimate.standard_error < 0.1 * float(matrix.norm())


def test_spectral_density_has_the_moments_of_the_spectrum():
    product, matrix = operator()
    density = spectral_density(product, probes=200, steps=12)
    assert density.nodes.shape == density.weights.shape == (200, 12)
    assert density.products == 200 * 12
    torch.testing.assert_close(density.weights.sum(1), torch.ones(200).double())
    values = torch.linalg.eigvalsh(matrix)
    for power in (1, 2):
        moment = float((density.weights * density.nodes**power).sum(1).mean())
        assert moment == pytest.approx(float((values**power).mean()), rel=0.1)
    grid = torch.linspace(-200, 500, 2000).double()
    assert float(torch.trapezoid(density.evaluate(grid, 5.0), grid)) == pytest.approx(1.0, abs=1e-6)
    below = torch.where(density.nodes < 100, density.weights, 0).sum(1).mean()
    assert float(below) == pytest.approx(float((values < 100).double().mean()), abs=0.06)


def test_what_is_not_finite_is_nan_and_bad_arguments_are_refused():
    product, _ = operator(math.nan)
    assert math.isnan(trace(product).value)
    assert math.isnan(trace(product, method="hutchinson").value)
    assert math.isnan(frobenius_norm(product).value)
    assert spectral_density(product).nodes.isnan().all()
    product, _ = operator()
    for call, message in [
        (lambda: trace(product, 2), "products=2"),
        (lambda: trace(product, method="exact"), "method='exact'"),
        (lambda: frobenius_norm(product, 1), "products=1"),
        (lambda: spectral_density(product, 0), "probes=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def cubic_network(p):
    x = torch.linspace(-1, 1, 7).double()[:, None]
    return (torch.tanh(x @ p["a"]) @ p["b"] - torch.sin(3 * x)).square().mean() + 0 * p["unused"].sum()


def flat_derivatives(loss, parameters):
    """g, H and the dense third derivative, by nested Jacobians."""
    shapes = {n: p.shape for n, p in parameters.items()}

    def of_flat(vector):
        pieces = vector.split([s.numel() for s in shapes.values()])
        return loss({n: piece.view(s) for (n, s), piece in zip(shapes.items(), pieces, strict=True)})

    flat = torch.cat([p.reshape(-1) for p in parameters.values()])
    jacobian = torch.autograd.functional.jacobian
    gradient = lambda v: jacobian(of_flat, v, create_graph=True)  # noqa: E731
    hessian = lambda v: jacobian(gradient, v, create_graph=True)  # noqa: E731
    return gradient(flat), hessian(flat), jacobian(hessian, flat)


def test_third_order_operators_are_the_dense_ones():
    torch.manual_seed(0)
    parameters = {"a": torch.randn(1, 4).double(), "b": torch.randn(4, 1).double(), "unused": torch.ones(1).double()}
    g, h, t = (derivative.detach() for derivative in flat_derivatives(cubic_network, parameters))
    expected = {"tg": t @ g, "h_squared": h @ h, "sum": t @ g + h @ h}
    operators = third_order_operators(cubic_network, parameters)
    for name, matrix in expected.items():
        actual = getattr(operators, name)
        columns = torch.stack([actual(e) for e in torch.eye(9, dtype=torch.float64)])
        torch.testing.assert_close(columns, matrix, rtol=1e-9, atol=1e-12)
        pairs = leading_eigenpairs(actual, torch.randn(9).double(), 2, tol=1e-10)
        torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix).flip(0)[:2])
        estimate = frobenius_norm(actual, 400)
        assert abs(estimate.value - float(matrix.norm())) <= 4 * estimate.standard_error


def test_tg_and_h_squared_is_the_hessian_of_half_the_squared_gradient():
    parameters = {"a": torch.randn(1, 4).double(), "b": torch.randn(4, 1).double(), "unused": torch.ones(1).double()}

    def penalty(p):
        gradients = torch.autograd.grad(cubic_network(p), list(p.values()), create_graph=True)
        return sum(gradient.square().sum() for gradient in gradients) / 2

    v = torch.randn(9).double()
    expected = hessian_vector_product(penalty, parameters)(v)
    torch.testing.assert_close(third_order_operators(cubic_network, parameters).sum(v), expected)


def test_third_order_of_a_quadratic_and_a_linear_loss():
    quadratic = third_order_operators(lambda p: (p["w"] ** 2).sum(), {"w": torch.ones(3)})
    assert [o(torch.ones(3)).tolist() for o in quadratic] == [[0.0] * 3, [4.0] * 3, [4.0] * 3]
    linear = third_order_operators(lambda p: p["w"].sum(), {"w": torch.ones(3)})
    assert [o(torch.ones(3)).tolist() for o in linear] == [[0.0] * 3] * 3
