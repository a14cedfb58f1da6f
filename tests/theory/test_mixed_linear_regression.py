"""The closed forms, against autograd MAML minimised numerically and against averages over random optima."""

import pytest
import torch

from lightning_gp.theory import (
    adaptation_distance,
    adaptation_loss,
    adapted_features,
    erm_solution,
    expected_adaptation_distance,
    expected_adaptation_loss,
    maml_solution,
    solution_covariance,
)

K, D, ALPHA = 4, 3, 0.15


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tasks():
    return draw(0, 6, K, D), draw(1, 6, D)


def stepped(w, phi, a, alpha):
    """One inner step on (1/K)‖Φ(w − a)‖², by autograd."""
    loss = (phi @ w - phi @ a).square().sum() / K
    return w - alpha * torch.autograd.grad(loss, w, create_graph=True)[0]


def mean_loss(w, tasks, alpha):
    """The mean loss after one inner step; α = 0 is ERM."""
    losses = [(phi @ stepped(w, phi, a, alpha) - phi @ a).square().sum() / K for phi, a in zip(*tasks, strict=True)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_solutions_are_where_gradient_descent_ends(tasks, alpha):
    w = torch.zeros(D, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = mean_loss(w, tasks, alpha)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = maml_solution(*tasks, alpha) if alpha else erm_solution(*tasks)
    torch.testing.assert_close(found, w.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(adaptation_loss(*tasks, alpha), mean_loss(w, tasks, alpha).detach())


def test_the_adaptation_loss_at_any_point(tasks):
    w = draw(2, D).requires_grad_()
    torch.testing.assert_close(adaptation_loss(*tasks, ALPHA, w), mean_loss(w, tasks, ALPHA))
    for phi, C in zip(tasks[0], adapted_features(tasks[0], ALPHA), strict=True):
        torch.testing.assert_close(C, phi @ (torch.eye(D, dtype=torch.float64) - 2 * ALPHA / K * phi.T @ phi))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_adaptation_distance_is_that_of_the_steps(tasks, steps):
    start = draw(2, D)
    distances = []
    for phi, a in zip(*tasks, strict=True):
        w = start.clone().requires_grad_()
        for _ in range(steps):
            w = stepped(w, phi, a, ALPHA)
        distances.append((w - a).square().sum())
    torch.testing.assert_close(adaptation_distance(start, *tasks, ALPHA, steps), torch.stack(distances).mean().detach())


def test_expectations_over_random_optima(tasks):
    """Everything is quadratic in the optima: the means over ±√(number) unit optima are exact."""
    features, new = tasks[0], draw(3, 5, K, D)
    count = len(features) * D
    units = (count**0.5) * torch.eye(count, dtype=torch.float64).reshape(count, len(features), D)
    solutions = torch.stack([maml_solution(features, optima, ALPHA) for optima in units])
    torch.testing.assert_close(solution_covariance(features, ALPHA), solutions.T @ solutions / count)

    own = (D**0.5) * torch.eye(D, dtype=torch.float64)  # optima of the new tasks, independent of w: cross terms vanish
    pairs = [(sign * w, a.expand(len(new), -1)) for w in solutions for a in own for sign in (-1, 1)]
    loss = torch.stack([adaptation_loss(new, a, ALPHA, w) for w, a in pairs]).mean()
    torch.testing.assert_close(expected_adaptation_loss(features, new, ALPHA), loss)
    distance = torch.stack([adaptation_distance(w, new, a, 0.1, 2) for w, a in pairs]).mean()
    torch.testing.assert_close(expected_adaptation_distance(features, new, ALPHA, 0.1, 2), distance)


def test_fewer_equations_than_unknowns_give_the_smallest_solution():
    phi, a = draw(4, 1, 1, D), draw(5, 1, D)
    expected = torch.linalg.pinv(phi[0]) @ phi[0] @ a[0]
    torch.testing.assert_close(erm_solution(phi, a), expected)


def test_bad_shapes_are_refused(tasks):
    features, optima = tasks
    with pytest.raises(ValueError, match=r"\(N, K, d\)"):
        adapted_features(features[0], ALPHA)
    with pytest.raises(ValueError, match="optima"):
        maml_solution(features, optima[:, :2], ALPHA)
    with pytest.raises(ValueError, match="steps=-1"):
        adaptation_distance(optima[0], features, optima, ALPHA, -1)
