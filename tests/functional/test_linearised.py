"""The linearised inner loop and its prototypes against the Jacobian written out, one environment at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from lightning_gp.functional.adaptation import adapt
from lightning_gp.functional.linearised import Linearisation, linearised_adapt
from lightning_gp.functional.prototype import prototype_agreement, prototype_cosine, prototype_scores
from tests.cases import images

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def problem():
    """Conv4 with batch normalisation, so that J couples the examples of a batch."""
    setting = images()
    network = setting.fresh()

    def predict(parameters, x):
        return functional_call(network, parameters, (x,))

    return setting, {n: p.detach() for n, p in network.named_parameters()}, predict


def jacobian(predict, parameters, names, x):
    """(K·C, P): every logit's derivative by every adapted parameter, by reverse mode, row by row."""
    own = {name: parameters[name] for name in names}
    columns = jacrev(lambda own: predict({**parameters, **own}, x).flatten())(own)
    return torch.cat([columns[name].flatten(1) for name in names], dim=1)


def vector(stacked, e):
    return torch.cat([value[e].flatten() for value in stacked.values()])


@pytest.mark.parametrize("part", ["", "body", "head"])
@pytest.mark.parametrize("steps", [1, 3])
def test_linearised_adapt_is_gradient_descent_on_the_written_out_linear_model(problem, part, steps):
    setting, parameters, predict = problem
    names = [name for name in parameters if name.startswith(part)]
    x, y = setting.environments.support
    path = linearised_adapt(
        predict, F.cross_entropy, parameters, (x, y), 0.4, steps, adapted=names, final_gradient=True
    )
    assert path.steps == steps
    assert len(path.gradients) == steps + 1
    assert set(path.shared) == set(parameters) - set(names)
    for e in range(3):
        start, features = predict(parameters, x[e]), jacobian(predict, parameters, names, x[e])
        moved = torch.zeros(features.shape[1], dtype=torch.float64)
        for step in range(steps + 1):
            logits = start + (features @ moved).view_as(start)
            residual = (logits.softmax(1) - F.one_hot(y[e], 3)) / len(y[e])
            gradient = features.T @ residual.flatten()
            theta = torch.cat([parameters[name].flatten() for name in names]) + moved
            torch.testing.assert_close(vector(path.parameters[step], e), theta, **CLOSE)
            torch.testing.assert_close(vector(path.gradients[step], e), gradient, **CLOSE)
            moved = moved - 0.4 * gradient


def test_products_with_the_jacobian(problem):
    setting, parameters, predict = problem
    x, _ = setting.environments.support
    stacked = {name: value.expand(3, *value.shape) for name, value in parameters.items()}
    linear = Linearisation(predict, stacked, {}, x)
    direction = {name: torch.randn(value.shape, dtype=torch.float64) for name, value in stacked.items()}
    cotangent = torch.randn(linear.outputs.shape, dtype=torch.float64)
    product, pulled = linear.product(direction), linear.transposed_product(cotangent)
    for e in range(3):
        features = jacobian(predict, parameters, list(parameters), x[e])
        torch.testing.assert_close(linear.outputs[e], predict(parameters, x[e]), **CLOSE)
        torch.testing.assert_close(product[e].flatten(), features @ vector(direction, e), **CLOSE)
        torch.testing.assert_close(vector(pulled, e), features.T @ cotangent[e].flatten(), **CLOSE)


def test_rates_of_each_parameter(problem):
    setting, parameters, predict = problem
    rates = {name: 0.1 + 0.05 * i for i, name in enumerate(parameters)}
    path = linearised_adapt(predict, F.cross_entropy, parameters, setting.environments.support, rates)
    for name, value in parameters.items():
        expected = value - rates[name] * path.gradients[0][name]
        torch.testing.assert_close(path.parameters[1][name], expected, **CLOSE)


def test_a_linear_network_is_its_own_linearisation():
    """With scores of 0 to begin with, the adapted classifier is the prototype classifier."""
    network = nn.Linear(4, 3).double()
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    x, y = torch.randn(2, 6, 4).double(), torch.randint(3, (2, 6))
    query = torch.randn(2, 5, 4).double()

    def predict(parameters, x):
        return functional_call(network, parameters, (x,))

    ours = linearised_adapt(predict, F.cross_entropy, parameters, (x, y), 0.7, 4)
    usual = adapt(lambda p, x, y: F.cross_entropy(predict(p, x), y), parameters, (x, y), 0.7, 4)
    for left, right in zip(ours.parameters, usual.parameters, strict=True):
        torch.testing.assert_close(left, right, **CLOSE)
    adapted = torch.stack([predict({n: v[e] for n, v in ours.parameters[-1].items()}, query[e]) for e in range(2)])
    scores = prototype_scores(predict, ours, query, steps=4)
    torch.testing.assert_close(scores, adapted, **CLOSE)
    assert prototype_agreement(adapted, scores).tolist() == [1.0, 1.0]
    torch.testing.assert_close(prototype_cosine(adapted, scores), torch.ones(2).double(), **CLOSE)


def test_prototype_scores_are_kernel_sums_over_the_support_set(problem):
    """Σ_i Σ_c β_ic ⟨φ_c(x_i), φ_d(x)⟩ with β = −∂L/∂f at θ_0, times α [L22, Eq. 13, 17, 18]."""
    setting, parameters, predict = problem
    (x, y), (query, _) = setting.environments
    names = list(parameters)
    trajectory = adapt(
        lambda p, x, y: F.cross_entropy(predict(p, x), y), parameters, (x, y), 0.4, 3, create_graph=False
    )
    scores = prototype_scores(predict, trajectory, query)
    for e in range(3):
        start = predict(parameters, x[e])
        importance = (F.one_hot(y[e], 3) - start.softmax(1)) / len(y[e])
        features = jacobian(predict, parameters, names, x[e])
        kernel = jacobian(predict, parameters, names, query[e]) @ features.T
        torch.testing.assert_close(scores[e].flatten(), 0.4 * kernel @ importance.flatten(), rtol=1e-8, atol=1e-11)


def test_agreement_and_cosine_are_their_definitions():
    torch.manual_seed(0)
    left, right = torch.randn(2, 6, 4).double(), torch.randn(2, 6, 4).double()
    for e in range(2):
        same, cosines = 0, []
        for a, b in zip(left[e], right[e], strict=True):
            same += int(a.argmax()) == int(b.argmax())
            a, b = a - a.mean(), b - b.mean()
            cosines.append(a @ b / a.norm() / b.norm())
        assert prototype_agreement(left, right)[e].item() == pytest.approx(same / 6)
        torch.testing.assert_close(prototype_cosine(left, right)[e], torch.stack(cosines).mean(), **CLOSE)
    torch.testing.assert_close(prototype_cosine(left, 5 * left + 3), torch.ones(2).double(), **CLOSE)
    torch.testing.assert_close(prototype_cosine(left, 1e-20 * left), torch.ones(2).double(), **CLOSE)


def test_equal_scores_have_cosine_0():
    assert prototype_cosine(torch.randn(1, 3, 2), torch.zeros(1, 3, 2)).tolist() == [0.0]


def test_bad_input(problem):
    setting, parameters, predict = problem
    support = setting.environments.support
    with pytest.raises(ValueError, match="steps=0"):
        linearised_adapt(predict, F.cross_entropy, parameters, support, 0.1, 0)
    with pytest.raises(ValueError, match=r"adapted=\['tail'\] must name"):
        linearised_adapt(predict, F.cross_entropy, parameters, support, 0.1, adapted=["tail"])
    path = linearised_adapt(predict, F.cross_entropy, parameters, support, 0.1, 2)
    with pytest.raises(ValueError, match="steps=3 must be at least 1 and at most 2"):
        prototype_scores(predict, path, support[0], steps=3)
    with pytest.raises(ValueError, match=r"at least 2 classes, got \(1, 4, 1\)"):
        prototype_agreement(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match=r"one shape .*\(1, 4, 2\) and \(1, 4, 3\)"):
        prototype_cosine(torch.zeros(1, 4, 2), torch.zeros(1, 4, 3))
