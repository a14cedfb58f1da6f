"""Per-environment gradients and their statistics, against one environment at a time and plain linear algebra."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_gp.functional.gradients import (
    cosine_similarity,
    environment_gradients,
    gradient_norm,
    gradients_of_losses,
    inner_product,
    pairwise_cosines,
)


@pytest.fixture
def problem():
    """A loss, its parameters and 4 environments; the network normalises by batch statistics."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5)
    ).double()
    x, y = torch.randn(4, 6, 1, 5, 5, dtype=torch.float64), torch.randint(5, (4, 6))

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(functional_call(network, parameters, (x,)), y)

    return network, loss, (x, y)


def one_by_one(network, examples):
    rows = []
    for x, y in zip(*examples, strict=True):
        loss = nn.functional.cross_entropy(network(x), y)
        rows.append(torch.autograd.grad(loss, list(network.parameters())))
    names = [name for name, _ in network.named_parameters()]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def test_gradients_are_those_of_each_environment_alone(problem):
    network, loss, examples = problem
    expected = one_by_one(network, examples)
    parameters = dict(network.named_parameters())
    found = environment_gradients(loss, parameters, examples)
    looped = gradients_of_losses(
        lambda p: torch.stack([loss(p, x, y) for x, y in zip(*examples, strict=True)]), parameters
    )
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        torch.testing.assert_close(looped[name], expected[name])
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(value.requires_grad for value in found.values())


def test_a_single_environment_keeps_its_axis(problem):
    network, loss, (x, y) = problem
    found = environment_gradients(loss, dict(network.named_parameters()), (x[:1], y[:1]))
    expected = one_by_one(network, (x[:1], y[:1]))
    torch.testing.assert_close(found, expected)


def test_works_without_gradients_and_in_inference_mode(problem):
    network, loss, (x, y) = problem
    expected = one_by_one(network, (x, y))
    with torch.no_grad():
        torch.testing.assert_close(environment_gradients(loss, dict(network.named_parameters()), (x, y)), expected)
    with torch.inference_mode():
        torch.testing.assert_close(environment_gradients(loss, dict(network.named_parameters()), (x, y)), expected)


def test_unused_parameters_have_zero_gradients():
    x = torch.ones(2, 3)
    parameters = {"w": torch.tensor(1.0), "unused": torch.ones(2)}
    found = environment_gradients(lambda p, x, y: (p["w"] * x).sum(), parameters, (x, x))
    assert found["unused"].equal(torch.zeros(2, 2))
    losses = gradients_of_losses(lambda p: p["w"] * torch.ones(2), parameters)
    assert losses["unused"].equal(torch.zeros(2, 2))


def test_statistics_agree_with_flat_vectors(problem):
    network, loss, (x, y) = problem
    parameters = dict(network.named_parameters())
    a = environment_gradients(loss, parameters, (x, y))
    b = environment_gradients(loss, parameters, (x.flip(1) * 0.5, y))
    flat_a, flat_b = (torch.cat([value.flatten(1) for value in stack.values()], 1) for stack in (a, b))
    torch.testing.assert_close(gradient_norm(a), flat_a.norm(dim=1))
    torch.testing.assert_close(cosine_similarity(a, b), torch.cosine_similarity(flat_a, flat_b))
    torch.testing.assert_close(inner_product(a, b), (flat_a * flat_b).sum(1))
    unit = flat_a / flat_a.norm(dim=1, keepdim=True)
    torch.testing.assert_close(pairwise_cosines(a), unit @ unit.T)


def test_cosine_with_a_common_direction():
    stack = {"w": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    common = {"w": torch.tensor([[2.0, 0.0]])}
    torch.testing.assert_close(cosine_similarity(stack, common), torch.tensor([1.0, 0.5**0.5]))


def test_a_zero_gradient_has_norm_zero_and_no_angle():
    a = {"w": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    assert gradient_norm(a).tolist() == [0.0, 1.0]
    cosine = cosine_similarity(a, {"w": torch.ones(2, 2)})
    assert cosine[0].isnan()
    assert not cosine[1].isnan()
    pairs = pairwise_cosines(a)
    assert pairs[0].isnan().all()
    assert pairs[1, 1] == 1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_gradients_neither_vanish_nor_overflow(size):
    a = {"w": torch.tensor([[3.0, 4.0]]) * size}
    torch.testing.assert_close(gradient_norm(a), torch.tensor([5.0]) * size)
    torch.testing.assert_close(cosine_similarity(a, a), torch.ones(1))


def test_infinite_and_nan_gradients_are_passed_on():
    norms = gradient_norm({"w": torch.tensor([[1.0, float("inf")], [float("nan"), 1.0], [3.0, 4.0]])})
    assert norms[0].isinf()
    assert norms[1].isnan()
    assert norms[2] == 5


def test_half_precision_is_accumulated_in_float32():
    gradients = {"w": torch.ones(1, 100_000, dtype=torch.bfloat16)}
    norm = gradient_norm(gradients)
    assert norm.dtype is torch.float32
    torch.testing.assert_close(norm, torch.tensor([100_000.0]).sqrt())
    torch.testing.assert_close(inner_product(gradients, gradients), torch.tensor([100_000.0]))


def test_bad_input_is_refused():
    x = torch.ones(2, 3)
    parameters = {"w": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r"one scalar per environment, got shape \(2, 3\)"):
        environment_gradients(lambda p, x, y: p["w"] * x, parameters, (x, x))
    with pytest.raises(ValueError, match="depend on no parameter"):
        environment_gradients(lambda p, x, y: x.sum(), parameters, (x, x))
    with pytest.raises(ValueError, match="depend on no parameter"):
        gradients_of_losses(lambda p: torch.ones(2), parameters)
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        gradients_of_losses(lambda p: p["w"], parameters)
    with pytest.raises(ValueError, match="got float"):
        gradients_of_losses(lambda p: 1.0, parameters)
    with pytest.raises(ValueError, match="different parameters"):
        cosine_similarity({"w": x}, {"v": x})
    with pytest.raises(ValueError, match="empty"):
        gradient_norm({})
    with pytest.raises(ValueError, match="empty"):
        inner_product({}, {})
    with pytest.raises(ValueError, match="hold \\[2, 3\\] environments"):
        inner_product({"w": x}, {"w": torch.ones(3, 3)})


def test_complex_gradients_are_conjugated():
    torch.manual_seed(0)
    a, b = (torch.randn(2, 4, 3, dtype=torch.complex128) for _ in range(2))
    left, right = {"w": a, "r": a.real[:, 0]}, {"w": b, "r": b.imag[:, 1]}
    flat = [torch.cat([stack["w"].flatten(1), stack["r"] + 0j], 1) for stack in (left, right)]
    norms = [row.abs().square().sum(1).sqrt() for row in flat]
    products = (flat[0].conj() * flat[1]).sum(1).real / norms[0] / norms[1]
    torch.testing.assert_close(gradient_norm(left), norms[0])
    torch.testing.assert_close(cosine_similarity(left, right), products)
    torch.testing.assert_close(inner_product(left, right), products * norms[0] * norms[1])
    gram = (flat[0].conj() @ flat[0].T).real / norms[0] / norms[0].unsqueeze(1)
    torch.testing.assert_close(pairwise_cosines(left), gram)


def test_live_parameters_may_be_reached_in_any_way():
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))
    found = gradients_of_losses(lambda p: torch.stack([(weight**2).sum(), (p["w"] ** 3).sum()]), {"w": weight})["w"]
    assert found.tolist() == [[4.0, 6.0], [12.0, 27.0]]
    assert weight.grad is None


def test_sparse_gradients_become_dense():
    table = torch.nn.Embedding(4, 2, sparse=True, dtype=torch.float64)
    found = gradients_of_losses(lambda p: table(torch.tensor([1, 1])).sum().reshape(1), {"w": table.weight})["w"]
    assert found.tolist() == [[[0.0, 0.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]]
