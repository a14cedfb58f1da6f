"""Reptile: its update against optimizers that walk by themselves, and its Jacobian against differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from lightning_gp import Environments, Reptile
from lightning_gp.functional import UpdateJacobian
from tests.cases import flat, regression, relative_error
from tests.modules.test_meta_gradients import gradient

OPTIMIZERS = {
    "gradient descent": (None, lambda values: torch.optim.SGD(values, lr=0.1)),
    "adam": (lambda values: torch.optim.Adam(values, lr=0.01, betas=(0.0, 0.999)),) * 2,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("vectorize", [True, False, 2])
def test_update_is_the_mean_way_back_from_where_an_optimizer_ends(name, vectorize):
    setting = regression()
    inner, reference = OPTIMIZERS[name]
    module = Reptile(setting.fresh(), 0.1, 4, criterion=F.mse_loss, inner_optimizer=inner, vectorize=vectorize)
    expected = 0.0
    for x, y in zip(*setting.environments.support, strict=True):
        network = copy.deepcopy(module.network)
        optimizer = reference(list(network.parameters()))
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(network(x), y).backward()
            optimizer.step()
        expected = expected + (flat(module.network.parameters()) - flat(network.parameters())).detach() / 4
    assert relative_error(gradient(module, setting.environments), expected) < 1e-10


def test_one_step_is_joint_training_and_the_query_set_does_not_train():
    setting = regression()
    support, (xq, yq) = setting.environments
    module = Reptile(setting.fresh(), 0.1, 1, criterion=F.mse_loss)
    found = gradient(module, setting.environments)
    loss = torch.stack([F.mse_loss(module.network(x), y) for x, y in zip(*support, strict=True)]).mean()
    assert relative_error(found, 0.1 * flat(torch.autograd.grad(loss, list(module.network.parameters())))) < 1e-12
    assert torch.equal(found, gradient(module, Environments(support, (xq, yq + 1))))
    module.training_loss(setting.environments.map(torch.clone))


def test_the_loss_is_that_after_the_inner_loop():
    setting = regression()
    module = Reptile(setting.fresh(), 0.1, 3, criterion=F.mse_loss)
    values = module.evaluate(setting.environments)
    torch.testing.assert_close(module.training_loss(setting.environments), values["loss"].mean())


def test_jacobian_of_the_update_is_that_of_differences():
    """What the edge of stability is taken from."""
    setting = regression(smooth=True)
    module = Reptile(setting.fresh(), 0.1, 3, criterion=F.mse_loss)
    check_jacobian(module, setting.environments)


def check_jacobian(module, environments):
    parameters = module.network_parameters()
    jacobian = UpdateJacobian(lambda theta: module.environment_objectives(theta, environments).mean(), parameters)
    assert relative_error(jacobian.update, gradient(module, environments)) < 1e-10
    direction = torch.randn(jacobian.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = flat(parameters.values()).detach().clone()
    ends = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * 1e-5 * direction, module.network.parameters())
        ends.append(gradient(module, environments).clone())
    torch.nn.utils.vector_to_parameters(start, module.network.parameters())
    along = (ends[0] - ends[1]) / 2e-5
    for other in torch.randn(3, jacobian.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)):
        product = float(jacobian(other) @ direction)  # it multiplies with the transpose
        assert product == pytest.approx(float(other @ along), rel=1e-6, abs=1e-7 * float(along.norm()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "ascent"}, "θ_0 − θ_S leads away"),
        ({"learn_inner_lr": True}, "learn_inner_lr could do nothing"),
        ({"multi_step_loss": 5}, "multi_step_loss could do nothing"),
        ({"recompute": True}, "overrides environment_terms"),
    ],
)
def test_arguments_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Reptile(regression().network, **options)
