"""Implicit MAML against the closed form of a quadratic, brute force, and its memory over the inner steps."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import MAML, Environments, ImplicitMAML
from lightning_gp.functional.conjugate_gradients import conjugate_gradients
from lightning_gp.functional.inner_loop import run
from tests.cases import flat, regression, relative_error
from tests.modules.test_meta_gradients import gradient
from tests.modules.test_reptile import check_jacobian


def quadratic(count=3, features=4):
    generator = torch.Generator().manual_seed(5)

    def examples(points):
        shapes = ((count, points, features), (count, points, 1))
        x, y = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
        return x, y

    return Environments(examples(6), examples(7))


def test_on_a_quadratic_it_is_the_closed_form():
    """θ* = (H + λ)⁻¹ (b + λθ), and the gradient λ (H + λ)⁻¹ ∇L^te(θ*)."""
    data, proximal = quadratic(), 1.5
    network = nn.Linear(4, 1, bias=False).double()
    module = ImplicitMAML(network, 0.1, 400, proximal=proximal, cg_steps=4, criterion=F.mse_loss)
    theta, expected, values = network.weight[0].detach(), 0.0, []
    for e in range(3):
        (x, y), (xq, yq) = ((split[0][e], split[1][e]) for split in data)
        hessian = 2 / 6 * x.T @ x + proximal * torch.eye(4, dtype=torch.float64)
        end = torch.linalg.solve(hessian, 2 / 6 * x.T @ y[:, 0] + proximal * theta)
        query = 2 / 7 * xq.T @ (xq @ end - yq[:, 0])
        expected = expected + proximal * torch.linalg.solve(hessian, query) / 3
        values.append(F.mse_loss(xq @ end, yq[:, 0]))
    torch.testing.assert_close(module.training_loss(data).detach(), torch.stack(values).mean())
    assert relative_error(gradient(module, data), expected) < 1e-10


@pytest.mark.parametrize(("adapt", "vectorize"), [("all", True), ("head", True), ("body", 1)])
def test_it_is_the_derivative_of_the_converged_loss(adapt, vectorize):
    """Finite differences of L^te(θ*) by every parameter, those that are not adapted included."""
    setting = regression(smooth=True)
    module = ImplicitMAML(
        setting.fresh(),
        0.05,
        70,
        adapt,
        proximal=8.0,
        cg_steps=40,
        cg_tol=1e-13,
        criterion=F.mse_loss,
        vectorize=vectorize,
    )
    found = gradient(module, setting.environments)
    parameters, start = list(module.network.parameters()), flat(module.network.parameters()).detach().clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(start.shape, dtype=torch.float64, generator=generator)
        ends = []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(start + sign * 1e-5 * direction, parameters)
            ends.append(module.training_loss(setting.environments).item())
        torch.nn.utils.vector_to_parameters(start, parameters)
        assert float(found @ direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_jacobian_of_the_update_is_that_of_differences():
    """With few inner steps and few of conjugate gradients: of the update that is made, not of the exact one."""
    setting = regression(smooth=True)
    for adapt in ("all", "head"):
        module = ImplicitMAML(setting.fresh(), 0.05, 3, adapt, proximal=8.0, cg_steps=2, criterion=F.mse_loss)
        check_jacobian(module, setting.environments)


def most_saved(kind, steps):
    """The most tensors that are saved for backward at any evaluation of the loss."""
    saved: weakref.WeakSet = weakref.WeakSet()
    counts = []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.add(self)

    def criterion(outputs, targets):
        counts.append(len(saved))
        return F.mse_loss(outputs, targets)

    setting = regression(count=2)
    module = kind(setting.fresh(), 0.01, steps, criterion=criterion, vectorize=True)
    module.checked(setting.environments)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda each: each.tensor):
        loss = module.training_loss(setting.environments)
        counts.append(len(saved))
    del loss
    return max(counts)


def test_memory_does_not_grow_with_the_inner_steps():
    assert most_saved(ImplicitMAML, 3) == most_saved(ImplicitMAML, 12)
    assert most_saved(MAML, 3) < most_saved(MAML, 12)
    setting = regression()
    parameters = dict(setting.network.named_parameters())
    module = ImplicitMAML(setting.network, criterion=F.mse_loss)
    whole = run(module.inner_loop(), parameters, setting.environments.support)
    alone = run(module.inner_loop(), parameters, setting.environments.support, keep_path=False)
    assert (len(whole.parameters), len(alone.parameters), alone.gradients) == (17, 1, ())
    for name, end in alone.parameters[0].items():
        assert torch.equal(end, whole.parameters[-1][name])


# -- conjugate gradients --------------------------------------------------------------------------------------------


def test_systems_are_solved_exactly_in_as_many_steps_as_dimensions():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 6, 6, dtype=torch.float64, generator=generator)
    matrix = root @ root.mT + torch.eye(6, dtype=torch.float64)
    right = {"w": torch.randn(5, 6, dtype=torch.float64, generator=generator)}
    right["w"][2] = 0
    products = []

    def multiply(vector):
        products.append(1)
        return {"w": (matrix @ vector["w"].unsqueeze(-1)).squeeze(-1)}

    found = conjugate_gradients(multiply, right, 12, tol=1e-13)["w"]
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right["w"]), rtol=1e-9, atol=1e-11)
    assert len(products) <= 13
    products.clear()
    conjugate_gradients(multiply, right, 12, tol=0.99)
    assert len(products) < 6


def test_a_matrix_that_is_not_positive_definite_stops_its_own_environment():
    scale = torch.tensor([[-2.0, -3.0], [2.0, 3.0]], dtype=torch.float64)
    right = {"w": torch.ones(2, 2, dtype=torch.float64)}
    found = conjugate_gradients(lambda v: {"w": scale * v["w"]}, right, 5)["w"]
    assert torch.equal(found[0], right["w"][0])
    torch.testing.assert_close(found[1], 1 / scale[1])


def test_a_loss_that_is_linear_in_the_weights():
    network = nn.Linear(2, 1).double()
    module = ImplicitMAML(network, criterion=lambda z, y: (z * y).mean())
    x = torch.ones(1, 3, 2, dtype=torch.float64)
    data = Environments((x, x[..., :1]), (x, 2 * x[..., :1]))
    torch.testing.assert_close(gradient(module, data), torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proximal": 0.0}, "proximal"),
        ({"cg_steps": 0}, "cg_steps=0"),
        ({"direction": "ascent"}, "do not end at a minimum"),
        ({"normalize": True}, "do not end at a minimum"),
        ({"learn_inner_lr": True}, "learn_inner_lr could do nothing"),
        ({"compile": True}, "overrides environment_terms"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImplicitMAML(regression().network, **options)
