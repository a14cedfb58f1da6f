from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from lightning_gp.functional.adaptation import adapt, over_environments
from tests.cases import Problem, images, regression, relative_error

NAMES_OF_HEAD = ["head.weight", "head.bias"]


def loss_of(problem: Problem):
    def loss(parameters, x, y):
        return problem.criterion(functional_call(problem.network, parameters, (x,)), y)

    return loss


def by_hand(problem: Problem, steps: int, names: list[str]):
    """The inner loop written plainly, one environment after the other."""
    loss, (xs, ys) = loss_of(problem), problem.environments.support
    paths = []
    for x, y in zip(xs, ys, strict=True):
        parameters = dict(problem.network.named_parameters())
        path, gradients = [parameters], []
        for _ in range(steps):
            values = [parameters[name] for name in names]
            gradient = torch.autograd.grad(loss(parameters, x, y), values, create_graph=True)
            gradients.append(dict(zip(names, gradient, strict=True)))
            moved = {n: parameters[n] - problem.inner_lr * g for n, g in gradients[-1].items()}
            parameters = {**parameters, **moved}
            path.append(parameters)
        paths.append((path, gradients))
    return paths


@pytest.mark.parametrize("make", [regression, images])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("part", ["all", "head"])
def test_the_path_is_that_of_the_plain_loop(make, steps, part):
    problem = make()
    parameters = dict(problem.network.named_parameters())
    names = list(parameters) if part == "all" else NAMES_OF_HEAD
    trajectory = adapt(
        loss_of(problem), parameters, problem.environments.support, problem.inner_lr, steps, adapted=names
    )
    assert trajectory.steps == steps
    assert set(trajectory.shared) == set(parameters) - set(names)
    for environment, (path, gradients) in enumerate(by_hand(problem, steps, names)):
        for k, theta in enumerate(path):
            for name in names:
                torch.testing.assert_close(
                    trajectory.parameters[k][name][environment], theta[name], rtol=1e-9, atol=1e-12
                )
        for k, gradient in enumerate(gradients):
            for name in names:
                torch.testing.assert_close(
                    trajectory.gradients[k][name][environment], gradient[name], rtol=1e-9, atol=1e-12
                )
        lengths = [
            torch.cat([(path[k + 1][name] - path[k][name]).flatten() for name in names]).norm() for k in range(steps)
        ]
        torch.testing.assert_close(trajectory.path_length[environment], torch.stack(lengths).sum())


def test_the_final_gradient_is_the_gradient_at_the_end():
    problem = regression()
    loss, parameters = loss_of(problem), dict(problem.network.named_parameters())
    trajectory = adapt(loss, parameters, problem.environments.support, 0.1, 2, final_gradient=True)
    assert len(trajectory.gradients) == 3
    end = {name: value.detach().requires_grad_() for name, value in trajectory.parameters[-1].items()}
    total = over_environments(loss, end, {}, *problem.environments.support).sum()
    for name, gradient in zip(end, torch.autograd.grad(total, list(end.values())), strict=True):
        torch.testing.assert_close(trajectory.gradients[-1][name], gradient)


def test_without_graph_nothing_holds_one():
    problem = regression()
    parameters = dict(problem.network.named_parameters())
    trajectory = adapt(loss_of(problem), parameters, problem.environments.support, 0.1, 2, create_graph=False)
    for tensors in (*trajectory.parameters, *trajectory.gradients):
        assert all(tensor.grad_fn is None or "Expand" in type(tensor.grad_fn).__name__ for tensor in tensors.values())
    assert not any(tensor.requires_grad for gradient in trajectory.gradients for tensor in gradient.values())


def test_it_works_where_gradients_are_off():
    problem = regression()
    with torch.no_grad():
        parameters = dict(problem.network.named_parameters())
        trajectory = adapt(loss_of(problem), parameters, problem.environments.support, 0.1, create_graph=False)
    assert (trajectory.path_length > 0).all()


def test_frozen_parameters_can_be_adapted():
    parameters = {"w": torch.zeros(2, dtype=torch.float64)}
    x, y = torch.ones(3, 4, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    trajectory = adapt(lambda p, x, y: (x @ p["w"] - y).square().mean(), parameters, (x, y), 0.1)
    torch.testing.assert_close(trajectory.parameters[1]["w"], torch.full((3, 2), 0.2, dtype=torch.float64))


def test_rates_by_name_and_elementwise():
    parameters = {"a": torch.zeros(2), "b": torch.zeros(())}
    support = (torch.ones(2, 3, 2), torch.ones(2, 3))
    rates = {"a": torch.tensor([0.0, 1.0]), "b": 0.5}
    path = adapt(lambda p, x, y: (x @ p["a"] + p["b"] - y).square().mean(), parameters, support, rates)
    torch.testing.assert_close(path.parameters[1]["a"], torch.tensor([[0.0, 2.0], [0.0, 2.0]]))
    torch.testing.assert_close(path.parameters[1]["b"], torch.ones(2))


@pytest.mark.parametrize(
    "build",
    [
        lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9),
        lambda values: torch.optim.Adam(values, lr=0.05, eps=0.0),  # `higher` adds ε before the bias correction
        lambda values: torch.optim.RMSprop(values, lr=0.02),
    ],
)
@pytest.mark.parametrize("first_order", [False, True])
def test_inner_optimizers_follow_higher_environment_by_environment(build, first_order):
    """Stacked environments through one differentiable optimizer against ``higher`` as its users call it."""
    import higher

    problem = regression(smooth=True)
    loss = loss_of(problem)
    network = problem.network
    parameters = dict(network.named_parameters())
    trajectory = adapt(
        loss, parameters, problem.environments.support, 0.0, 3, inner_optimizer=build, first_order=first_order
    )
    ours = over_environments(loss, trajectory.parameters[-1], {}, *problem.environments.query)
    gradient = torch.autograd.grad(ours.sum(), list(parameters.values()))

    theirs, reference = [], [torch.zeros_like(value) for value in parameters.values()]
    (xs, ys), (xq, yq) = problem.environments
    for e in range(len(xs)):
        optimizer = build(list(network.parameters()))
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (functional, differentiable):
            for _ in range(3):
                stop = (lambda gs: [g.detach() for g in gs]) if first_order else None
                differentiable.step(problem.criterion(functional(xs[e]), ys[e]), grad_callback=stop)
            value = problem.criterion(functional(xq[e]), yq[e])
            theirs.append(value.detach())
            own = torch.autograd.grad(value, list(functional.parameters(time=0)))
            reference = [total + part for total, part in zip(reference, own, strict=True)]
    torch.testing.assert_close(ours.detach(), torch.stack(theirs), rtol=1e-10, atol=1e-12)
    flat = [torch.cat([value.flatten() for value in values]) for values in (gradient, reference)]
    assert relative_error(*flat) < 1e-8


@pytest.mark.parametrize(
    ("steps", "adapted", "message"),
    [(0, None, "steps=0.*at least 1"), (1, ["nothing"], "adapted=.*nothing.*head"), (1, [], "adapted=.*head")],
)
def test_refusals(steps, adapted, message):
    problem = regression()
    parameters = dict(problem.network.named_parameters())
    with pytest.raises(ValueError, match=message):
        adapt(loss_of(problem), parameters, problem.environments.support, 0.1, steps, adapted=adapted)
