"""``CriticalLearningRate`` against closed forms on quadratics and a scan of the loss along the step."""

from __future__ import annotations

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ERM, MAML, Environments
from lightning_gp.callbacks import CriticalLearningRate, critical_learning_rate
from lightning_gp.functional import turning_rate
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import Classifier, build, fit, loaders, sinusoid_data

DOUBLE = {"precision": "64-true"}


@pytest.mark.parametrize("guess", [1e-4, 0.3, 40.0])
def test_a_quadratic_turns_at_its_closed_form(guess):
    torch.manual_seed(0)
    factor = torch.randn(4, 4, dtype=torch.float64)
    hessian, theta, d = factor @ factor.T, torch.randn(4).double(), torch.randn(4).double()
    gradient = hessian @ theta
    d = d if gradient @ d > 0 else -d

    def loss(rate):
        moved = theta - rate * d
        return float(moved @ hessian @ moved) / 2

    turn = turning_rate(loss, guess, tol=1e-8)
    assert turn.rate == pytest.approx(float(2 * gradient @ d / (d @ hessian @ d)), rel=1e-7)


@pytest.mark.parametrize("guess", [1e-3, 0.1, 1.0])
def test_other_functions_turn_where_a_scan_says(guess):
    def loss(rate):
        return math.cosh(3 * rate - 1) + 0.2 * math.sin(rate)

    turn = turning_rate(loss, guess, tol=1e-6)
    scan = next(rate for rate in (i * 1e-5 for i in range(1, 200_000)) if loss(rate) > loss(0))
    assert turn.rate == pytest.approx(scan, abs=2e-5)


def test_what_never_rises_what_rises_at_once_and_what_is_not_finite():
    assert turning_rate(lambda rate: -rate, 0.1).rate == math.inf
    assert turning_rate(lambda rate: rate, 0.1).rate == 0
    assert math.isnan(turning_rate(lambda rate: math.nan, 0.1).rate)
    assert turning_rate(lambda rate: math.nan if rate > 0.5 else -rate, 0.1, tol=1e-4).rate == pytest.approx(
        0.5, rel=1e-3
    )


class Line(pl.LightningModule):
    """½ h w² along one eigenvector."""

    def __init__(self, rate=0.05, **options):
        super().__init__()
        self.weight, self.rate, self.options = nn.Parameter(torch.ones(2, dtype=torch.float64)), rate, options

    def training_step(self, batch, batch_idx):
        return 4 * self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate, **self.options)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "nesterov": False}])
def test_along_an_eigenvector_it_is_the_critical_rate(tmp_path, options):
    callback = CriticalLearningRate(tol=1e-6)
    fit(tmp_path, Line(**options), loaders()[0], [callback], max_epochs=1)
    # θ′ = (1 − βλ)θ, d = λθ, and the loss at θ′ − ηd is back at its start for η = 2 (1 − βλ)/λ.
    assert callback.values["learning_rates/turning"] == pytest.approx(2 * (1 - 0.05 * 8) / 8, rel=1e-5)
    assert callback.values["learning_rates/turning_ratio"] == pytest.approx(0.05 / 0.15, rel=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop])
@pytest.mark.parametrize("kind", [ERM, MAML])
def test_it_is_where_a_scan_of_the_training_objective_turns(tmp_path, kind, optimizer):
    torch.manual_seed(0)
    module = kind(SinusoidMLP((4,)), criterion=F.mse_loss, optimizer=lambda p: optimizer(p, lr=1e-3))
    steps = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            steps.append([p.detach().clone() for p in pl_module.parameters()])

    callback = CriticalLearningRate(tol=1e-5, per_environment=True)
    fit(tmp_path, module, sinusoid_data(4, dtype="float64"), [Watch(), callback], max_epochs=1, **DOUBLE)
    rate, before, after = 1e-3, steps[-1], [p.detach().clone() for p in module.parameters()]
    own = copy.deepcopy(module)
    count = sum(len(batch.support[0]) for batch in callback.batch.batches)

    def loss(eta):
        with torch.no_grad():
            for p, old, new in zip(own.parameters(), before, after, strict=True):
                p.copy_(new + eta / rate * (new - old))
        return sum(float(own.training_loss(b).detach()) * len(b.support[0]) for b in callback.batch.batches) / count

    found = callback.values["learning_rates/turning"]
    if math.isfinite(found) and found > 0:
        assert loss(0.999 * found) <= loss(0.0) < loss(1.001 * found)
    else:
        assert (loss(1e-3) > loss(0)) == (found == 0)
    assert callback.values["learning_rates/turning_min"] <= callback.values["learning_rates/turning_mean"]


def test_compiled_modules_and_kernels_without_double_backward(tmp_path):
    class Compiled(Classifier):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.network = torch.compile(self.network, backend="eager")

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    class Kernel(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(Once.apply(self.network(batch[0])), batch[1])

    for cls in (Compiled, Kernel):
        callback = CriticalLearningRate()
        fit(tmp_path, build(cls), loaders(), [callback])
        assert callback.values["learning_rates/turning"] >= 0


def test_dropout_draws_the_same_at_every_rate(tmp_path, monkeypatch):
    def repeated(loss, guess, tol):
        assert loss(0.1) == loss(0.1) != loss(0.2)
        return turning_rate(loss, guess, tol)

    monkeypatch.setattr(critical_learning_rate, "turning_rate", repeated)
    fit(tmp_path, build(Classifier), loaders(), [CriticalLearningRate(tol=1e-4)])


def test_two_runs_agree_with_dropout(tmp_path):
    values = []
    for _ in range(2):
        callback = CriticalLearningRate(tol=1e-4)
        fit(tmp_path, build(Classifier), loaders(), [callback])
        values.append(callback.values)
    assert values[0] == values[1]


def test_environments_are_wanted_where_they_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="per_environment=True: Classifier has no environment_losses"):
        fit(tmp_path, build(Classifier), loaders(), [CriticalLearningRate(per_environment=True)])


def test_environments_one_by_one(tmp_path):
    x = torch.tensor([10.0, 0.1], dtype=torch.float64).div(2).sqrt().reshape(2, 1, 1)
    data = torch.utils.data.DataLoader([Environments((x, 0 * x))] * 3, batch_size=None)
    module = ERM(nn.Linear(1, 1, bias=False), criterion=F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    callback = CriticalLearningRate(per_environment=True, tol=1e-6)
    fit(tmp_path, module, data, [callback], max_epochs=1, **DOUBLE)
    # One weight: every environment's loss turns where w′ has changed its sign, whatever its curvature.
    assert callback.values["learning_rates/turning_min"] == pytest.approx(callback.values["learning_rates/turning"])
