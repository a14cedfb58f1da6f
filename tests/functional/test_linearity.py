"""Consistencies of paths known in advance; the phase loss against its equation written out for one environment."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_gp.functional.adaptation import Trajectory, adapt
from lightning_gp.functional.linearity import (
    approximation,
    loss_gradient_ratio,
    phase_consistency,
    phase_loss,
)


def path(points, gradients=()):
    """A trajectory of one parameter; points and gradients of shape (S + 1, E, size)."""
    return Trajectory(tuple({"w": p} for p in points), tuple({"w": g} for g in gradients), {})


@pytest.fixture
def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def predict(parameters, x):
        return functional_call(network, parameters, (x,))

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(predict(parameters, x), y)

    x, y = torch.randn(3, 5, 3, dtype=torch.float64), torch.randint(4, (3, 5))
    return network, predict, loss, (x, y)


def test_consistencies_are_1_when_the_gradient_is_constant():
    """A loss that is linear in the parameters."""
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    trajectory = adapt(
        lambda p, x, y: (x @ p["w"]).mean(), {"w": torch.randn(3).double()}, (x, x), 0.3, 5, final_gradient=True
    )
    torch.testing.assert_close(phase_consistency(trajectory), torch.ones(4).double(), rtol=1e-12, atol=0)
    assert loss_gradient_ratio(trajectory).equal(torch.ones(4).double())


def test_a_straight_path_of_uneven_steps_has_phase_1():
    points = torch.tensor([0.0, 1.0, 1.5, 4.0]).reshape(4, 1, 1) * torch.ones(1, 2, 4)
    assert phase_consistency(path(points)).equal(torch.ones(2))


def test_one_step_is_always_straight(problem):
    network, _, loss, support = problem
    trajectory = adapt(loss, dict(network.named_parameters()), support, 0.5)
    assert phase_consistency(trajectory).equal(torch.ones(3).double())


def test_consistencies_are_their_equations(problem):
    network, _, loss, (x, y) = problem
    parameters = dict(network.named_parameters())
    trajectory = adapt(loss, parameters, (x, y), 2.0, 4, final_gradient=True)
    for e in range(3):
        theta = torch.cat([p.detach().flatten() for p in parameters.values()])
        points, norms = [theta], []
        for _ in range(5):
            own, flat = {}, points[-1]
            for name, p in parameters.items():
                own[name], flat = flat[: p.numel()].view_as(p).requires_grad_(), flat[p.numel() :]
            gradient = torch.autograd.grad(loss(own, x[e], y[e]), list(own.values()))
            gradient = torch.cat([g.flatten() for g in gradient])
            norms.append(gradient.norm())
            points.append((points[-1] - 2.0 * gradient).detach())
        points = points[:5]
        length = sum((after - before).norm() for before, after in itertools.pairwise(points))
        torch.testing.assert_close(phase_consistency(trajectory)[e], length / (points[-1] - points[0]).norm())
        torch.testing.assert_close(loss_gradient_ratio(trajectory)[e], sum(norms[1:]) / norms[0] / 4)


def test_degenerate_paths():
    still = torch.zeros(3, 1, 2)
    assert phase_consistency(path(still)).tolist() == [1.0]
    assert loss_gradient_ratio(path(still, still)).tolist() == [1.0]
    loop = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1)
    assert phase_consistency(path(loop)).isinf().all()
    assert loss_gradient_ratio(path(loop, loop)).isinf().all()


def test_the_ratio_needs_the_final_gradient(problem):
    network, _, loss, support = problem
    trajectory = adapt(loss, dict(network.named_parameters()), support, 0.5, 2)
    with pytest.raises(ValueError, match=r"2 gradients for 2 inner steps.*final_gradient=True"):
        loss_gradient_ratio(trajectory)


def written_out_phase_loss(predict, loss, parameters, x, y, query, lr, steps):
    """[L22, Eq. 7, 8] for one environment, differentiable."""
    names, theta, length, first = list(parameters), dict(parameters), 0.0, None
    for _ in range(steps):
        gradient = torch.autograd.grad(loss(theta, x, y), [theta[n] for n in names], create_graph=True)
        first = gradient if first is None else first
        length = length + lr * torch.cat([g.flatten() for g in gradient]).norm()
        theta = {n: theta[n] - lr * g for n, g in zip(names, gradient, strict=True)}
    delta = length / torch.cat([g.flatten() for g in first]).norm()
    hat = {n: parameters[n] - delta * g for n, g in zip(names, first, strict=True)}
    p, q = predict(theta, query).softmax(1), predict(hat, query).softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def test_phase_loss_and_its_gradient_are_the_equation(problem):
    network, predict, loss, (x, y) = problem
    parameters = dict(network.named_parameters())
    query = torch.randn(3, 7, 3, dtype=torch.float64)
    trajectory = adapt(loss, parameters, (x, y), 1.5, 3)
    found = phase_loss(predict, trajectory, query)
    expected = torch.stack(
        [written_out_phase_loss(predict, loss, parameters, x[e], y[e], query[e], 1.5, 3) for e in range(3)]
    )
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()
    values = list(parameters.values())
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), values), torch.autograd.grad(expected.sum(), values), rtol=1e-8, atol=1e-12
    )


def test_phase_loss_after_one_step_is_zero(problem):
    network, predict, loss, (x, y) = problem
    trajectory = adapt(loss, dict(network.named_parameters()), (x, y), 1.5)
    torch.testing.assert_close(phase_loss(predict, trajectory, x), torch.zeros(3).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("detach", ["target", "approximation"])
def test_detached_side_gives_no_gradient(problem, detach):
    network, predict, loss, (x, y) = problem
    parameters = dict(network.named_parameters())
    values = list(parameters.values())
    trajectory = adapt(loss, parameters, (x, y), 1.5, 3)
    gradients = torch.autograd.grad(phase_loss(predict, trajectory, x, detach).sum(), values, retain_graph=True)

    hat = approximation(trajectory)
    logits = {"target": trajectory.parameters[-1], "approximation": hat}
    for side in logits:
        stacked = logits[side]
        logits[side] = torch.stack([predict({n: v[e] for n, v in stacked.items()}, x[e]) for e in range(3)])
    p, q = logits["target"].softmax(2), logits["approximation"].softmax(2)
    p, q = (p.detach(), q) if detach == "target" else (p, q.detach())
    expected = torch.autograd.grad((p * (p.log() - q.log())).sum(2).mean(1).sum(), values)
    torch.testing.assert_close(gradients, expected)


def test_phase_loss_with_a_zero_gradient_is_zero_and_finite_to_differentiate():
    parameters = {"w": torch.zeros(2, 3, requires_grad=True)}
    x = torch.zeros(2, 4, 2)
    y = torch.zeros(2, 4, dtype=torch.long)
    predict = lambda p, x: x @ p["w"]  # noqa: E731
    trajectory = adapt(lambda p, x, y: nn.functional.cross_entropy(predict(p, x), y), parameters, (x, y), 0.5, 3)
    found = phase_loss(predict, trajectory, torch.randn(2, 5, 2))
    assert found.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(found.sum(), parameters["w"])[0].isfinite().all()
    assert phase_consistency(trajectory).tolist() == [1.0, 1.0]


def test_bad_input_is_refused(problem):
    network, predict, loss, (x, y) = problem
    trajectory = adapt(loss, dict(network.named_parameters()), (x, y), 1.5, 2)
    with pytest.raises(ValueError, match="detach='both'"):
        phase_loss(predict, trajectory, x, "both")
    with pytest.raises(ValueError, match=r"at least 2 classes, got \(3, 5, 1\)"):
        phase_loss(lambda p, x: predict(p, x)[:, :1], trajectory, x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [1, 2])
def test_a_path_that_is_not_finite_has_no_consistency(bad, where):
    points = [torch.zeros(2, 2), torch.ones(2, 2), 3 * torch.ones(2, 2)]
    points[where][0, 0] = bad
    path = tuple({"w": point} for point in points)
    trajectory = Trajectory(path, path, {})
    assert phase_consistency(trajectory).isnan().tolist() == [True, False]
    gradients = tuple({"w": point} for point in (points[1], points[where], points[2]))
    assert loss_gradient_ratio(Trajectory(path, gradients, {})).isnan().tolist() == [True, False]
