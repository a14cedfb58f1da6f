"""Hessian products and eigenvalues against the dense Hessian, and everything they must leave alone."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.functional.hessian_product import hessian_vector_product
from lightning_gp.functional.lanczos import leading_eigenpairs
from lightning_gp.functional.starts import warm_start
from tests.cases import Once


def network_loss(dtype=torch.float64, activation=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)).to(dtype)
    x, y = torch.randn(20, 3, dtype=dtype), torch.randint(3, (20,))
    return (lambda p: F.cross_entropy(functional_call(network, p, (x,)), y)), dict(network.named_parameters())


def dense(loss, parameters):
    """The Hessian by torch's own double loop, rows and columns in the order of the dict."""
    names, shapes = list(parameters), [p.shape for p in parameters.values()]
    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def of_flat(vector):
        pieces = vector.split([shape.numel() for shape in shapes])
        return loss({n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)})

    return torch.autograd.functional.hessian(of_flat, flat)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_product_is_the_dense_hessian(activation):
    loss, parameters = network_loss(activation=activation)
    product, expected = hessian_vector_product(loss, parameters), dense(loss, parameters)
    actual = torch.stack([product(e) for e in torch.eye(product.size, dtype=torch.float64)])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(product.value, loss(parameters).detach())
    v = torch.randn(product.size, dtype=torch.float64)
    by_name = product(product.unflatten(v))
    assert {n: e.shape for n, e in by_name.items()} == {n: p.shape for n, p in parameters.items()}
    torch.testing.assert_close(torch.cat([e.reshape(-1) for e in by_name.values()]), expected @ v)
    assert torch.equal(product(v), product(v))


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("seed", range(3))
def test_eigenvalues_agree_with_dense(k, seed):
    loss, parameters = network_loss(seed=seed)
    hessian = dense(loss, parameters)
    expected = torch.linalg.eigvalsh(hessian).flip(0)
    pairs = hessian_eigenvalues(loss, parameters, k, tol=1e-8)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, expected[:k], rtol=1e-6, atol=1e-12)
    for value, vector in zip(pairs.values, pairs.vectors, strict=True):
        torch.testing.assert_close(hessian @ vector, value * vector, rtol=0, atol=1e-4)


def test_all_eigenvalues_and_one_too_many():
    loss, parameters = network_loss()
    size = sum(p.numel() for p in parameters.values())
    expected = torch.linalg.eigvalsh(dense(loss, parameters)).flip(0)
    pairs = hessian_eigenvalues(loss, parameters, size)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=1e-10)
    with pytest.raises(ValueError, match=f"k={size + 1} .* {size} parameters"):
        hessian_eigenvalues(loss, parameters, size + 1)


def test_float32():
    loss, parameters = network_loss(torch.float32)
    expected = torch.linalg.eigvalsh(dense(loss, parameters).double()).flip(0)
    pairs = hessian_eigenvalues(loss, parameters, 3, tol=1e-5)
    assert pairs.converged
    assert pairs.vectors.dtype == torch.float32
    torch.testing.assert_close(pairs.values, expected[:3], rtol=1e-5, atol=1e-6)


def test_half_precision_parameters_are_handled_in_float32():
    weight = torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16)
    pairs = hessian_eigenvalues(lambda p: (p["w"].float() ** 3).sum(), {"w": weight}, 2)
    torch.testing.assert_close(pairs.values, torch.tensor([24.0, 12.0]).double(), rtol=1e-2, atol=0)


def test_stationary_point():
    scales = torch.tensor([3.0, 2.0, -4.0])
    pairs = hessian_eigenvalues(lambda p: (scales * p["w"] ** 2).sum(), {"w": torch.zeros(3)}, 3)
    torch.testing.assert_close(pairs.values, torch.tensor([6.0, 4.0, -8.0]).double())


@pytest.mark.parametrize("frozen", [lambda p: p["a"].sum(), lambda p: 0 * p["a"].square().sum()])
def test_flat_loss_has_zero_curvature(frozen):
    pairs = hessian_eigenvalues(frozen, {"a": torch.ones(30)}, 2)
    assert pairs.converged
    assert pairs.values.tolist() == [0.0, 0.0]
    assert pairs.products < 10


def test_parameters_that_do_not_enter():
    parameters = {"unused": torch.ones(2), "cubic": torch.tensor([1.0, 2.0]), "linear": torch.ones(1)}
    product = hessian_vector_product(lambda p: (p["cubic"] ** 3).sum() + p["linear"].sum(), parameters)
    assert product(torch.ones(5)).tolist() == [0.0, 0.0, 6.0, 12.0, 0.0]


def sinusoid_training(seed, epochs):
    """Loss and parameters of a 1-40-40-1 network after each epoch of 20 SGD steps on a sinusoid."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    x = torch.rand(500, 1) * 10 - 5
    y = 2 * torch.sin(x + 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for _ in range(epochs):
        for _ in range(20):
            chosen = torch.randint(len(x), (50,))
            optimizer.zero_grad()
            F.mse_loss(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
        yield lambda p: F.mse_loss(functional_call(network, p, (x,)), y), dict(network.named_parameters())


def test_warm_start_saves_products_while_a_network_trains():
    """Measured: a fifth to a third of a random start's on this network; larger ones are in the benchmarks."""
    random_start = warm_start = 0
    for seed in range(3):
        vectors = None
        for loss, parameters in sinusoid_training(seed, epochs=4):
            warm = hessian_eigenvalues(loss, parameters, 2, initial=vectors)
            if vectors is not None:
                product = hessian_vector_product(loss, parameters)
                noise = torch.randn(product.size, generator=torch.Generator().manual_seed(seed))
                random = leading_eigenpairs(product, noise, 2)
                torch.testing.assert_close(warm.values, random.values, rtol=1e-3, atol=0)
                random_start += random.products
                warm_start += warm.products
            vectors = warm.vectors
    assert warm_start <= 0.85 * random_start


def test_one_vector_stands_for_all():
    loss, parameters = network_loss()
    vectors = hessian_eigenvalues(loss, parameters, 3).vectors
    left, right = (hessian_eigenvalues(loss, parameters, 3, initial=v) for v in (vectors, warm_start(vectors)))
    assert torch.equal(left.values, right.values)
    assert left.products == right.products


def test_initial_vectors_that_are_useless_or_wrong():
    loss, parameters = network_loss()
    expected = hessian_eigenvalues(loss, parameters, 2)
    for useless in (math.nan, 0.0):
        actual = hessian_eigenvalues(loss, parameters, 2, initial=torch.full_like(expected.vectors, useless))
        assert torch.equal(actual.values, expected.values)
    bottom = torch.linalg.eigh(dense(loss, parameters))[1].T[:2]
    misled = hessian_eigenvalues(loss, parameters, 2, initial=bottom)
    torch.testing.assert_close(misled.values, expected.values, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=rf"initial must have shape \(m, {expected.vectors.shape[1]}\)"):
        hessian_eigenvalues(loss, parameters, 2, initial=torch.ones(2, 3))


def test_no_side_effects():
    loss, parameters = network_loss()
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in parameters.items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        hessian_eigenvalues(loss, parameters, 2)
    with torch.no_grad():
        hessian_eigenvalues(lambda p: loss(p) * F.dropout(torch.ones(1), 0.0) * torch.rand(1), parameters, 2)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name][0])
        assert torch.equal(parameter.grad, before[name][1])
        assert parameter.requires_grad


def test_changed_parameters_are_noticed():
    loss, parameters = network_loss()
    product = hessian_vector_product(loss, parameters)
    with torch.no_grad():
        parameters["0.weight"].add_(1.0)
        parameters["2.weight"].add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        product(torch.ones(product.size, dtype=torch.float64))


def test_reduce_sees_the_gradient_and_every_product():
    loss, parameters = network_loss()
    calls = []
    pairs = hessian_eigenvalues(loss, parameters, 2, tol=1e-8, reduce=lambda v: calls.append(v) or 2 * v)
    assert len(calls) == pairs.products + 1
    expected = 2 * torch.linalg.eigvalsh(dense(loss, parameters)).flip(0)[:2]
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "broken", [lambda p: p["w"].sum() * math.nan, lambda p: (p["w"] * math.inf).sum(), lambda p: p["w"].sqrt().sum()]
)
def test_a_loss_that_is_not_finite_gives_nan(broken):
    pairs = hessian_eigenvalues(broken, {"w": torch.zeros(10)}, 2)
    assert pairs.values.isnan().all()
    assert not pairs.converged
    assert pairs.products <= 1


def attention(p):
    return F.scaled_dot_product_attention(p["w"], p["w"], p["w"]).square().sum()


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (attention, (1, 2, 8, 16)),
        (lambda p: Once.apply(p["w"]).square().sum(), (3,)),
        (lambda p: Once.apply(p["w"].square().sum()), (3,)),
    ],
)
def test_no_double_backward_names_the_way_out(loss, shape):
    with pytest.raises(RuntimeError, match=r"no double backward.*SDPBackend\.MATH"):
        hessian_eigenvalues(loss, {"w": torch.randn(shape)}, 2)


def test_attention_with_the_math_kernel():
    def loss(p):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return attention(p)

    parameters = {"w": torch.randn(1, 1, 3, 4, dtype=torch.float64)}
    expected = torch.linalg.eigvalsh(dense(loss, parameters)).flip(0)
    actual = hessian_eigenvalues(loss, parameters, 2, tol=1e-8).values
    torch.testing.assert_close(actual, expected[:2], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("loss", "parameters", "error", "message"),
    [
        (lambda p: p["w"], {"w": torch.ones(2)}, TypeError, r"scalar tensor, got a tensor of shape \(2,\)"),
        (lambda p: 1.0, {"w": torch.ones(2)}, TypeError, "got float"),
        (lambda p: torch.ones(()), {"w": torch.ones(2)}, ValueError, "does not depend on the parameters"),
        (lambda p: p["w"].detach().sum(), {"w": torch.ones(2)}, ValueError, "functional_call"),
        (lambda p: p["w"].sum(), {}, ValueError, "parameters is empty"),
        (lambda p: p["w"].sum(), {"w": torch.ones(2, dtype=torch.long)}, ValueError, "'w' has dtype torch.int64"),
    ],
)
def test_bad_losses(loss, parameters, error, message):
    with pytest.raises(error, match=message):
        hessian_vector_product(loss, parameters)


def test_products_need_no_gradient():
    loss, parameters = network_loss()
    product = hessian_vector_product(loss, parameters)
    v = torch.randn(product.size, dtype=torch.float64)
    before = product(v)
    product.forget_gradient()
    assert torch.equal(product(v), before)
    assert not hasattr(product, "gradient")


def test_bad_vectors():
    product = hessian_vector_product(lambda p: p["w"].square().sum(), {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"\(2,\), got \(3,\)"):
        product(torch.ones(3))
    with pytest.raises(ValueError, match="names and shapes"):
        product({"v": torch.ones(2)})
