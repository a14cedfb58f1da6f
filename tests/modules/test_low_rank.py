"""Which modules compute their inner loop in the low-rank form, and that nobody sees a difference."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, BOIL, FOMAML, MAML
from lightning_gp.environments import Environments
from lightning_gp.modules import low_rank
from lightning_gp.networks import SinusoidMLP
from tests.cases import flat, regression, relative_error

PROBLEM = regression()
RATE = {"inner_lr": 0.1, "criterion": F.mse_loss}


def classes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (3, 6), generator=generator)
    y[0, :4] = -100  # ignored, so that the mean is not over all examples
    return Environments((x, y), (x.flip(1), y.flip(1)))


def classifier():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gradient(module, batch):
    loss = module.training_loss(batch)
    return loss.detach(), flat(torch.autograd.grad(loss, module.trained_parameters()))


def assert_same_as_adapt(module, batch):
    """Of a module that has run: its step, and the one with the low-rank form turned off."""
    found = gradient(module, batch)
    assert module._low_rank is True
    module._low_rank = False
    for value, reference in zip(found, gradient(module, batch), strict=True):
        assert relative_error(value, reference) <= 1e-10


KINDS = {
    "MAML": (MAML, {"inner_steps": 3}),
    "learned": (MAML, {"learn_inner_lr": True}),
    "one learned rate": (MAML, {"learn_inner_lr": True, "inner_lr_per": "scalar", "inner_steps": 2}),
    "Meta-SGD": (MAML, {"learn_inner_lr": True, "inner_lr_per": "element"}),
    "chunks": (MAML, {"vectorize": 3}),
    "FOMAML": (FOMAML, {"inner_steps": 2}),
    "ascent": (MAML, {"direction": "ascent", "inner_steps": 2}),
    "ANIL": (ANIL, {"inner_steps": 2}),
    "BOIL": (BOIL, {"inner_steps": 2}),
}


@pytest.mark.parametrize("name", KINDS)
def test_modules_give_what_adapt_gives(name):
    kind, options = KINDS[name]
    assert_same_as_adapt(kind(PROBLEM.fresh(), **{**RATE, **options}), PROBLEM.environments)


@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss()])
def test_any_criterion(criterion):
    assert_same_as_adapt(MAML(classifier(), criterion=criterion), classes())


@pytest.mark.parametrize("criterion", [F.l1_loss, F.huber_loss, nn.MSELoss(), nn.MSELoss(reduction="sum")])
def test_elementwise_criteria(criterion):
    assert_same_as_adapt(MAML(PROBLEM.fresh(), inner_lr=0.01, criterion=criterion), PROBLEM.environments)


class OwnPredict(MAML):
    def predict(self, parameters, x):
        return 2 * super().predict(parameters, x)


class OwnLoss(MAML):
    def loss(self, parameters, x, y):
        return 2 * super().loss(parameters, x, y)


class OwnAdaptation(MAML):
    def adaptation(self, loss, parameters, environments, **options):
        return super().adaptation(loss, parameters, environments, **{**options, "steps": 2})


class OwnNetwork(SinusoidMLP):
    def forward(self, x):
        return super().forward(x).sin()


def with_hook():
    network = SinusoidMLP((7, 6)).double()
    network.head.register_forward_hook(lambda module, inputs, output: output.sin())
    return network


def tied():
    network = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    network[2].weight = network[0].weight
    return network


def noisy(outputs, y):
    return F.mse_loss(outputs + torch.randn_like(outputs), y)


STRANGE = {
    "predict": lambda: OwnPredict(PROBLEM.fresh(), **RATE),
    "loss": lambda: OwnLoss(PROBLEM.fresh(), **RATE),
    "adaptation": lambda: OwnAdaptation(PROBLEM.fresh(), **RATE),
    "a subclass of the network": lambda: MAML(OwnNetwork((7, 6)).double(), **RATE),
    "a hook": lambda: MAML(with_hook(), **RATE),
    "tied weights": lambda: MAML(tied(), **RATE),
    "dropout": lambda: MAML(nn.Sequential(nn.Linear(1, 3), nn.Dropout(), nn.Linear(3, 1)).double(), **RATE),
    "an inner optimizer": lambda: MAML(
        PROBLEM.fresh(), inner_optimizer=lambda tensors: torch.optim.Adam(tensors), **RATE
    ),
    "normalised steps": lambda: MAML(PROBLEM.fresh(), normalize=True, **RATE),
    "rates of steps": lambda: MAML(PROBLEM.fresh(), inner_steps=2, learn_inner_lr=True, inner_lr_per="step", **RATE),
    "a random criterion": lambda: MAML(PROBLEM.fresh(), inner_lr=0.1, criterion=noisy),
}


@pytest.mark.parametrize("name", STRANGE)
def test_whatever_is_special_is_adapted_as_ever(name):
    module = STRANGE[name]()
    module._low_rank = False
    torch.manual_seed(0)
    module._low_rank = False
    expected = gradient(module, PROBLEM.environments)
    module._low_rank = None
    module._chunk_size, module._tried = None, set()
    torch.manual_seed(0)
    found = gradient(module, PROBLEM.environments)
    assert module._low_rank is not True
    assert torch.equal(found[1], expected[1])


def test_autocast_is_left_to_adapt():
    module = MAML(PROBLEM.fresh().float(), **RATE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.training_loss(PROBLEM.environments.map(torch.Tensor.float))
    assert module._low_rank is None


def test_other_numbers_in_the_trial_turn_it_off(monkeypatch):
    right = low_rank.adapted_losses
    monkeypatch.setattr(low_rank, "adapted_losses", lambda *args, **kwargs: right(*args, **kwargs) * 1.001)
    module = MAML(PROBLEM.fresh(), **RATE)
    found = gradient(module, PROBLEM.environments)
    assert module._low_rank is False
    monkeypatch.undo()
    reference = MAML(module.network, **RATE)
    reference._low_rank = False
    assert torch.equal(found[1], gradient(reference, PROBLEM.environments)[1])


def test_the_trial_does_not_depend_on_the_rate():
    """Rates that make the inner loop overflow are judged as any others: maps train cells in any order."""
    module = MAML(PROBLEM.fresh(), inner_lr=1e200, inner_steps=3, criterion=F.mse_loss)
    module.training_loss(PROBLEM.environments)
    assert module._low_rank is True


def test_a_hook_that_comes_later_is_seen():
    module = MAML(PROBLEM.fresh(), **RATE)
    before = module.training_loss(PROBLEM.environments)
    module.network.head.register_forward_hook(lambda layer, inputs, output: 2 * output)
    after = module.training_loss(PROBLEM.environments)
    assert module._low_rank is True
    assert not torch.allclose(before, after)
