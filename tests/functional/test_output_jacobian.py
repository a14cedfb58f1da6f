"""Linearity of the outputs along the inner loop against dense Jacobians and Hessians, and of models that are linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from lightning_gp.functional import (
    adapt,
    amplitude_consistency,
    jacobian_norm,
    linearisation_error,
    loss_gradient_ratio,
    noise_term,
    phase_consistency,
)


@pytest.fixture
def problem():
    """A network with batch norm, whose outputs depend on all examples; its body alone is adapted."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    network = nn.Sequential(nn.Linear(3, 6), norm, nn.Tanh(), nn.Linear(6, 4)).double()

    def predict(parameters, x):
        return functional_call(network, parameters, (x,))

    def loss(parameters, x, y):
        return F.cross_entropy(predict(parameters, x), y)

    support = torch.randn(3, 5, 3, dtype=torch.float64), torch.randint(4, (3, 5))
    adapted = ["0.weight", "0.bias", "1.weight"]
    options = {"adapted": adapted, "final_gradient": True, "create_graph": False}
    path = adapt(loss, dict(network.named_parameters()), support, 0.7, 3, **options)
    return predict, loss, support, path


def at(path, k, e):
    """The adapted parameters of environment e after k steps, as one vector, and a function that splits such a one."""
    own = {name: value[e].detach() for name, value in path.parameters[k].items()}
    shared = {name: value.detach() for name, value in path.shared.items()}

    def split(vector):
        pieces = vector.split([value.numel() for value in own.values()])
        return {**shared, **{n: piece.view_as(own[n]) for n, piece in zip(own, pieces, strict=True)}}

    return torch.cat([value.flatten() for value in own.values()]), split


def dense_jacobian(predict, path, k, e, x):
    vector, split = at(path, k, e)
    return jacrev(lambda theta: predict(split(theta), x).flatten())(vector)


def test_amplitude_consistency_is_that_of_the_dense_jacobian(problem):
    predict, _, (x, _), path = problem
    found = amplitude_consistency(predict, path, x)
    for e in range(3):
        norms = [dense_jacobian(predict, path, k, e, x[e]).norm() for k in range(4)]
        torch.testing.assert_close(found[e], sum(norms[1:]) / norms[0] / 3)
    assert ((found - loss_gradient_ratio(path)).abs() > 0.1).any()


def test_probes_estimate_the_square_without_bias(problem):
    predict, _, (x, _), path = problem
    exact = jacobian_norm(predict, path.parameters[0], path.shared, x, probes=0)
    for e in range(3):
        torch.testing.assert_close(exact[e], dense_jacobian(predict, path, 0, e, x[e]).norm())
    draws = [jacobian_norm(predict, path.parameters[0], path.shared, x, 20, seed).square() for seed in range(200)]
    found, deviation = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 200**0.5
    assert ((found - exact.square()).abs() < 4 * deviation).all()
    assert (deviation < 0.05 * exact.square()).all()
    state = torch.get_rng_state()
    assert draws[0].equal(jacobian_norm(predict, path.parameters[0], path.shared, x, 20, 0).square())
    assert torch.get_rng_state().equal(state)


def test_many_rows_are_estimated(problem):
    predict, _, (x, _), path = problem
    many = x.repeat(1, 4, 1)
    exact, guess = (amplitude_consistency(predict, path, many, probes) for probes in (0, None))
    assert not guess.equal(exact)
    torch.testing.assert_close(guess, exact, rtol=0.1, atol=0)


def test_linearisation_error_is_that_of_the_dense_jacobian(problem):
    predict, _, _, path = problem
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    found = linearisation_error(predict, path, x)
    for e in range(3):
        (start, split), (end, _) = at(path, 0, e), at(path, 3, e)
        before, after = (predict(split(theta), x[e]).flatten() for theta in (start, end))
        rest = after - before - dense_jacobian(predict, path, 0, e, x[e]) @ (end - start)
        torch.testing.assert_close(found[e], rest.norm() / (after - before).norm())
    assert (found > 0.01).all()


def test_noise_is_that_of_the_dense_hessian(problem):
    _, loss, (x, y), path = problem
    found = noise_term(loss, path, (x, y))
    for e in range(3):
        terms = []
        for k in range(3):
            vector, split = at(path, k, e)
            g = torch.cat([value[e].flatten() for value in path.gradients[k].values()])
            own_loss = lambda theta, split=split, e=e: loss(split(theta), x[e], y[e])  # noqa: E731
            # Not torch.func.hessian, which is silently wrong through batch norm.
            h = hessian(own_loss, vector)
            nudged = [jacrev(own_loss)(vector + sign * 1e-6 * g / g.norm()) for sign in (1, -1)]
            torch.testing.assert_close(h @ g / g.norm(), (nudged[0] - nudged[1]) / 2e-6, rtol=1e-5, atol=1e-8)
            terms.append(0.7 * (g @ h @ g) / (g @ g))
        torch.testing.assert_close(found[e], sum(terms) / 3)


@pytest.mark.parametrize("ways", [2, 3, 5])
@pytest.mark.parametrize("probes", [0, 3])
def test_a_linear_classifier_is_linear(ways, probes):
    """Cross-entropy on one example per class: by symmetry the path is straight, while the loss's gradient shrinks."""
    features = torch.linalg.qr(torch.randn(2, 8, 8, dtype=torch.float64))[0][:, :ways]
    labels = torch.arange(ways).expand(2, ways)
    predict = lambda p, x: x @ p["w"]  # noqa: E731
    loss = lambda p, x, y: F.cross_entropy(predict(p, x), y)  # noqa: E731
    start = {"w": torch.zeros(8, ways, dtype=torch.float64)}
    path = adapt(loss, start, (features, labels), 3.0, 4, final_gradient=True, create_graph=False)
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(amplitude_consistency(predict, path, features, probes), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(phase_consistency(path), one, rtol=1e-12, atol=0)
    assert (linearisation_error(predict, path, torch.randn(2, 6, 8).double()) < 1e-12).all()
    assert (loss_gradient_ratio(path) < 0.8).all()


def test_of_any_linear_classifier_only_the_path_may_bend(problem):
    _, _, (x, y), _ = problem
    predict = lambda p, x: x @ p["w"] + p["b"]  # noqa: E731
    start = {"w": torch.randn(3, 4).double(), "b": torch.randn(4).double()}
    path = adapt(lambda p, x, y: F.cross_entropy(predict(p, x), y), start, (x, y), 1.0, 3, create_graph=False)
    torch.testing.assert_close(amplitude_consistency(predict, path, x), torch.ones(3).double(), rtol=1e-12, atol=0)
    assert (linearisation_error(predict, path, x) < 1e-12).all()
    assert (phase_consistency(path) > 1 + 1e-6).all()


def test_dropout_draws_the_same_at_every_point():
    x, y = torch.randn(2, 5, 3).double(), torch.randint(4, (2, 5))
    predict = lambda p, x: F.dropout(x, 0.5) @ p["w"]  # noqa: E731
    start = {"w": torch.randn(3, 4).double()}
    path = adapt(lambda p, x, y: F.cross_entropy(predict(p, x), y), start, (x, y), 1.0, 3, create_graph=False)
    torch.testing.assert_close(amplitude_consistency(predict, path, x), torch.ones(2).double())
    assert (linearisation_error(predict, path, x) < 1e-12).all()


def test_what_does_not_move_and_what_is_refused():
    x = torch.zeros(1, 2, 3)
    predict = lambda p, x: x @ p["w"]  # noqa: E731
    loss = lambda p, x, y: predict(p, x).sum()  # noqa: E731
    path = adapt(loss, {"w": torch.zeros(3, 2)}, (x, x), 1.0, 2, create_graph=False)
    assert amplitude_consistency(predict, path, x).tolist() == [1.0]
    assert linearisation_error(predict, path, x).tolist() == [0.0]
    assert noise_term(loss, path, (x, x)).tolist() == [0.0]
    with pytest.raises(ValueError, match="do not depend on the parameters"):
        amplitude_consistency(lambda p, x: x, path, x)
    with pytest.raises(ValueError, match="probes=-1"):
        amplitude_consistency(predict, path, x, probes=-1)
