"""The inner loop that goes up: against plain autograd, a hand-written SAM step and closed forms on quadratics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, FOMAML, LIL, MAML, Environments
from lightning_gp.theory import critical_outer_lr
from lightning_gp.theory.inner_bounds import inner_bound
from lightning_gp.tuning import LearningRateTuner
from tests.cases import flat, images, regression, relative_error
from tests.modules.test_meta_gradients import FORMS, gradient

UP = {"direction": "ascent"}


def written_out(setting, module, steps, normalize):
    """Each environment by itself, the steps as one writes them down; by all parameters of the network."""
    leaves = list(module.network.parameters())
    names = [name for name, _ in module.network.named_parameters()]
    total = [torch.zeros_like(leaf) for leaf in leaves]
    (xs, ys), (xq, yq) = setting.environments
    for e in range(len(xs)):
        theta = dict(zip(names, leaves, strict=True))
        for _ in range(steps):
            loss = setting.criterion(torch.func.functional_call(module.network, theta, (xs[e],)), ys[e])
            own = torch.autograd.grad(loss, [theta[n] for n in module.adapted], create_graph=not module.first_order)
            length = torch.cat([g.flatten() for g in own]).norm() if normalize else 1.0
            moved = zip(module.adapted, own, strict=True)
            theta = {**theta, **{n: theta[n] + setting.inner_lr * g / length for n, g in moved}}
        loss = setting.criterion(torch.func.functional_call(module.network, theta, (xq[e],)), yq[e])
        found = torch.autograd.grad(loss / len(xs), leaves)
        total = [a + b for a, b in zip(total, found, strict=True)]
    return flat(total)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [MAML, FOMAML, ANIL])
@pytest.mark.parametrize("problem", [regression, images])
def test_gradient_is_that_of_the_steps_written_down(problem, kind, steps, normalize):
    setting = problem()
    module = kind(setting.fresh(), setting.inner_lr, steps, criterion=setting.criterion, normalize=normalize, **UP)
    expected = written_out(setting, module, steps, normalize)
    assert relative_error(gradient(module, setting.environments), expected) < 1e-9


@pytest.mark.parametrize("kind", [MAML, FOMAML])
def test_the_written_out_gradient_ascends_too(kind):
    setting = regression()
    expected = None
    for form in FORMS.values():
        module = kind(
            setting.fresh(), setting.inner_lr, 2, criterion=setting.criterion, learn_inner_lr=True, **UP, **form
        )
        found = gradient(module, setting.environments)  # by the rates as well
        expected = found if expected is None else expected
        assert relative_error(found, expected) < 1e-9


def test_the_compiled_map_ascends_too():
    setting = regression()
    module = MAML(setting.fresh(), setting.inner_lr, 2, criterion=setting.criterion, **UP)
    rate = torch.tensor(setting.inner_lr, dtype=torch.float64)
    found = module.meta_gradient(module.network_parameters(), setting.environments, rates=rate, weight=1 / 4)
    assert relative_error(flat(found.parameters.values()), gradient(module, setting.environments)) < 1e-9


def test_learned_rates_get_the_gradient_of_their_own_sign():
    setting = regression(smooth=True)
    module = MAML(setting.fresh(), 0.1, 2, criterion=setting.criterion, learn_inner_lr=True, inner_lr_per="step", **UP)
    gradient(module, setting.environments)
    for rate in module.inner_rates.parameters():
        assert rate.shape == (2,)
        for step in range(2):
            ends = []
            for distance in (1e-4, -1e-4):
                with torch.no_grad():
                    rate[step] += distance
                ends.append(module.training_loss(setting.environments).item())
                with torch.no_grad():
                    rate[step] -= distance
            assert float(rate.grad[step]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-9)


# -- sharpness-aware minimisation -----------------------------------------------------------------------------------


def sam_step(network, criterion, x, y, radius):
    """∇L(θ + ρ g/‖g‖), as it is written by hand."""
    network.zero_grad()
    criterion(network(x), y).backward()
    own = [parameter.grad.clone() for parameter in network.parameters()]
    length = torch.sqrt(sum(g.square().sum() for g in own))
    with torch.no_grad():
        for parameter, g in zip(network.parameters(), own, strict=True):
            parameter.add_(radius * g / length)
    network.zero_grad()
    criterion(network(x), y).backward()
    return flat(parameter.grad for parameter in network.parameters())


@pytest.mark.parametrize("problem", [regression, images])
def test_it_is_sam_in_each_environment(problem):
    setting = problem()
    x, y = setting.environments.support
    module = FOMAML(setting.fresh(), 0.05, criterion=setting.criterion, normalize=True, **UP)
    each = [sam_step(setting.fresh(), setting.criterion, x[e], y[e], 0.05) for e in range(len(x))]
    found = gradient(module, Environments((x, y), (x, y)))
    assert relative_error(found, torch.stack(each).mean(0)) < 1e-10


@pytest.mark.parametrize("first_order", [False, True])
def test_a_gradient_of_zero_makes_no_step_and_no_nan(first_order):
    network = nn.Linear(2, 1).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.stack([network(x[0]), network(x[1]) + 1]).detach()  # the first environment is solved exactly
    query = (x, y + 1)
    module = MAML(network, 0.1, 2, first_order, criterion=F.mse_loss, normalize=True, **UP)
    parameters = module.network_parameters()
    path = module.adaptation(module.loss, parameters, Environments((x, y), query))
    for name, end in path.parameters[-1].items():
        assert torch.equal(end[0], parameters[name])
    assert gradient(module, Environments((x, y), query)).isfinite().all()
    alone = Environments((x[:1], y[:1]), (x[:1], y[:1] + 1))
    plain = torch.autograd.grad(F.mse_loss(network(x[0]), y[0] + 1), list(network.parameters()))
    torch.testing.assert_close(gradient(module, alone), flat(plain))


# -- quadratics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["descent", "ascent"])
@pytest.mark.parametrize("first_order", [False, True])
def test_on_a_quadratic_the_gradient_is_the_closed_form(first_order, direction):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 8, 3, dtype=torch.float64, generator=generator)
    network = nn.Linear(3, 1, bias=False).double()
    module = MAML(network, 0.05, 3, first_order, criterion=F.mse_loss, direction=direction)
    hessian = 2 / 8 * x[0].T @ x[0]
    sign = 1 if direction == "ascent" else -1
    moved = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) + sign * 0.05 * hessian, 3)
    expected = (torch.eye(3, dtype=torch.float64) if first_order else moved) @ hessian @ moved @ network.weight[0]
    batch = Environments((x, torch.zeros(1, 8, 1, dtype=torch.float64)), None)
    torch.testing.assert_close(gradient(module, batch), expected.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("alpha", [0.02, 0.3])
def test_training_diverges_above_the_exact_bound_and_not_below(first_order, steps, alpha):
    """Gradient descent of the module itself, α beyond where first-order descent has no minimum included."""
    x = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    batch = Environments((x, torch.zeros(1, 2, 1, dtype=torch.float64)), None)
    kind = "first_order_ascent" if first_order else "ascent"
    bound = critical_outer_lr(torch.tensor([4.0, 1.0], dtype=torch.float64), alpha, kind, steps).item()
    for factor, diverges in ((0.98, False), (1.02, True)):
        module = MAML(nn.Linear(2, 1, bias=False).double(), alpha, steps, first_order, criterion=F.mse_loss, **UP)
        nn.init.constant_(module.network.weight, 1.0)
        optimizer = torch.optim.SGD(module.network.parameters(), lr=factor * bound)
        for _ in range(300):
            module.zero_grad()
            module.training_loss(batch).backward()
            optimizer.step()
        assert (module.network.weight.norm() > 10) == diverges


# -- what theory says of it, and what is refused --------------------------------------------------------------------


def network():
    return nn.Linear(1, 1)


def test_nothing_bounds_the_rate_of_an_ascent():
    for module in (MAML(network(), 0.3, **UP), FOMAML(network(), 0.3, **UP), MAML(network(), 0.3, normalize=True)):
        assert inner_bound(module) == (0.3, ["weight", "bias"], None, False)
    assert inner_bound(FOMAML(network(), 0.3)).loses_minimum
    assert MAML(network(), 0.3, 2, **UP).rate().kind == "ascent"
    assert FOMAML(network(), 0.3, **UP).rate().kind == "first_order_ascent"
    assert MAML(network(), 0.3, normalize=True, **UP).rate().kind is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "direction='up'"),
        ({"inner_optimizer": torch.optim.SGD, **UP}, "maximize=True"),
        ({"inner_optimizer": torch.optim.SGD, "normalize": True}, "in whose place is an inner_optimizer"),
        ({"recompute": True, "normalize": True}, "together with normalize"),
        ({"recompute": True, "learn_inner_lr": True, "inner_lr_per": "step"}, "together with rates for each step"),
        ({"recompute": True, "multi_step_loss": 3}, "multi_step_loss"),
        ({"multi_step_loss": -1}, "multi_step_loss=-1"),
        ({"inner_lr": -0.1}, "inner_lr=-0.1"),
    ],
)
def test_what_cannot_be_followed_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MAML(network(), **options)


def test_the_tuner_is_for_descent():
    setting = regression()
    module = MAML(setting.fresh(), criterion=setting.criterion, **UP)
    with pytest.raises(ValueError, match="for inner descent"):
        LearningRateTuner(iterations=4).tune(module, [setting.environments])


def test_lil_takes_its_losses_on_the_ascending_path():
    setting = regression()
    options = {"criterion": F.mse_loss, "divergence": "gaussian", "amplitude_weight": 0.1}
    module = LIL(setting.fresh(), 0.05, 3, **options, **UP)
    path = module.adaptation(module.loss, module.network_parameters(), setting.environments)
    terms = module.environment_terms(module.network_parameters(), setting.environments)
    torch.testing.assert_close(terms["amplitude_loss"], path.path_length)
    first = MAML(setting.fresh(), 0.05, 3, criterion=F.mse_loss, **UP)
    expected = first.environment_terms(first.network_parameters(), setting.environments)["loss"]
    torch.testing.assert_close(terms["task_loss"], expected)
