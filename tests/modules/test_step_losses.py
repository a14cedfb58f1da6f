"""MAML++: the losses after every inner step against autograd, and how their weights go over to the last."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_gp import LIL, MAML, MetaSGD
from lightning_gp.trainability.objective import rate_of
from tests.cases import flat, regression, relative_error
from tests.modules.test_meta_gradients import gradient


class At(MAML):
    """In the middle of a training."""

    global_step = 3


class LILAt(LIL):
    global_step = 3


def expected(setting, first_order):
    """v_k = (1 − 3/10)/3 for the first two of three steps, by hand."""
    leaves = list(setting.network.parameters())
    names = [name for name, _ in setting.network.named_parameters()]
    weights, total = (0.7 / 3, 0.7 / 3, 1 - 1.4 / 3), 0.0
    (xs, ys), (xq, yq) = setting.environments
    for e in range(len(xs)):
        theta = leaves
        for weight in weights:
            call = dict(zip(names, theta, strict=True))
            loss = F.mse_loss(torch.func.functional_call(setting.network, call, (xs[e],)), ys[e])
            own = torch.autograd.grad(loss, theta, create_graph=not first_order)
            theta = [t - setting.inner_lr * g for t, g in zip(theta, own, strict=True)]
            call = dict(zip(names, theta, strict=True))
            total = total + weight * F.mse_loss(torch.func.functional_call(setting.network, call, (xq[e],)), yq[e])
    return flat(torch.autograd.grad(total / len(xs), leaves))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", [At, LILAt])
def test_gradient_is_that_of_the_weighted_losses(kind, first_order):
    setting = regression()
    options = {"phase_weight": 0.0, "amplitude_weight": 0.0} if kind is LILAt else {}
    module = kind(
        setting.fresh(), setting.inner_lr, 3, first_order, criterion=F.mse_loss, multi_step_loss=10, **options
    )
    assert relative_error(gradient(module, setting.environments), expected(setting, first_order)) < 1e-10


def test_first_order_lil_keeps_its_task_gradient_first_order():
    """The gradient of the regulariser alone, taken off, leaves that of the weighted losses."""
    setting = regression()
    options = {"criterion": F.mse_loss, "divergence": "gaussian", "phase_weight": 0.2, "amplitude_weight": 0.1}
    module = LILAt(setting.fresh(), setting.inner_lr, 3, True, multi_step_loss=10, **options)
    plain = LIL(setting.fresh(), setting.inner_lr, 3, True, **options)
    task = MAML(setting.fresh(), setting.inner_lr, 3, True, criterion=F.mse_loss)
    of = [gradient(each, setting.environments).clone() for each in (module, plain, task)]
    assert relative_error(of[0] - of[1] + of[2], expected(setting, True)) < 1e-9


def test_the_earlier_losses_end():
    module = MAML(regression().network, inner_steps=3, multi_step_loss=10)
    assert module.term_weights() == pytest.approx({"query_loss": 1 / 3, "earlier_loss": 2 / 3})
    At.global_step = 10
    try:
        assert At(regression().network, inner_steps=3, multi_step_loss=10).term_weights() == {}
    finally:
        At.global_step = 3
    assert MAML(regression().network, inner_steps=1, multi_step_loss=10).term_weights() == {}


def test_a_map_is_refused():
    with pytest.raises(ValueError, match="set it to 0 for a map"):
        rate_of(MAML(regression().network, multi_step_loss=10))


def test_rates_of_each_step_are_used_in_turn_and_the_last_one_on():
    setting = regression()
    module = MAML(setting.fresh(), 0.1, 2, criterion=F.mse_loss, learn_inner_lr=True, inner_lr_per="step")
    with torch.no_grad():
        for rate in module.inner_rates.parameters():
            rate.copy_(torch.tensor([0.1, 0.02]))
    parameters = module.network_parameters()
    path = module.adaptation(module.loss, parameters, setting.environments, steps=4).parameters
    for k, rate in enumerate((0.1, 0.02, 0.02, 0.02)):
        theta = {name: value.detach().requires_grad_() for name, value in path[k].items()}
        first = {name: value[0] for name, value in theta.items()}
        loss = module.loss(first, setting.environments.support[0][0], setting.environments.support[1][0])
        own = torch.autograd.grad(loss, list(theta.values()))
        for (name, value), g in zip(theta.items(), own, strict=True):
            torch.testing.assert_close(path[k + 1][name][0], value[0] - rate * g[0])


def test_meta_sgd_is_a_learned_rate_for_each_entry():
    setting = regression()
    module = MetaSGD(setting.fresh(), 0.1, criterion=F.mse_loss)
    shapes = [rate.shape for rate in module.inner_rates.parameters()]
    assert shapes == [parameter.shape for parameter in module.network.parameters()]
    assert module.hparams["learn_inner_lr"] is True
    assert (
        relative_error(
            gradient(module, setting.environments),
            gradient(
                MAML(setting.fresh(), 0.1, criterion=F.mse_loss, learn_inner_lr=True, inner_lr_per="element"),
                setting.environments,
            ),
        )
        < 1e-12
    )
