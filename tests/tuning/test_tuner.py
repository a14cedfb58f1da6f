"""The tuner: curvatures against closed forms, the search, and that it leaves everything as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, ERM, FOMAML, MAML, Environments, GradientPenalty
from lightning_gp.modules.schedulers import outer_rate
from lightning_gp.theory import optimal_adaptation_lr
from lightning_gp.trainability.stream import BatchStream
from lightning_gp.tuning import LearningRateTuner
from lightning_gp.tuning.curvature import outer_bound, support_curvatures
from lightning_gp.tuning.objective_trials import ObjectiveTrials
from lightning_gp.tuning.trials import Trial, best_trial, search
from lightning_gp.tuning.tunable import only_optimizer


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


SGD = {"criterion": F.mse_loss, "optimizer": sgd}


def batch(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 6, 2, dtype=torch.float64, generator=generator)
    y = x @ torch.randn(count, 1, 2, 1, dtype=torch.float64, generator=generator)
    return Environments((x[:, 0], y[:, 0]), (x[:, 1], y[:, 1]))


def module(kind=MAML, optimizer=sgd, **options):
    torch.manual_seed(0)
    network = nn.Linear(2, 1, bias=False).double()
    return kind(network, criterion=F.mse_loss, optimizer=optimizer, **{"inner_lr": 0.02, **options})


def hessians(x):
    """Of mean (xw − y)² in each environment."""
    return 2 / x.shape[1] * x.mT @ x


def test_suggestion_for_gradient_descent():
    data, tuned = batch(), module()
    before, state = copy.deepcopy(tuned.state_dict()), torch.get_rng_state()
    lines = []
    found = LearningRateTuner(iterations=40, progress=lines.append).tune(tuned, data)

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert tuned.inner_rates() == {"weight": 0.02}

    largest = torch.linalg.eigvalsh(hessians(data.support[0])).max()
    assert found.critical_inner_lr == pytest.approx(float(1 / largest), rel=1e-3)
    assert found.optimal_adaptation_lr == pytest.approx(float(optimal_adaptation_lr(data.support[0])))
    inner = torch.eye(2).double() - found.inner_lr * hessians(data.support[0])  # the Jacobian of one step
    exact = (inner @ hessians(data.query[0]) @ inner).mean(0)
    assert found.critical_outer_lr == pytest.approx(float(2 / torch.linalg.eigvalsh(exact).max()), rel=1e-3)

    losses = {run.rate: run.loss for run in found.outer_trials if run.loss is not None}
    good = [rate for rate, loss in losses.items() if loss <= 1.02 * min(losses.values())]
    assert found.outer_lr == min(good)
    assert found.loss == losses[found.outer_lr] < found.own[2]
    assert any(run.rate == 0.02 for run in found.inner_trials)
    assert any(run.rate == 0.05 for run in found.outer_trials)
    assert len(lines) >= len(found.inner_trials) + len(found.outer_trials)
    assert "largest outer rate that converges" in found.report()
    assert len(found.plot().axes) == 2

    found.apply(tuned)
    assert tuned.inner_rates() == {"weight": found.inner_lr}
    assert tuned.hparams["inner_lr"] == found.inner_lr
    assert outer_rate(only_optimizer(tuned)) == pytest.approx(found.outer_lr)


def test_the_theory_is_not_claimed_for_adam():
    found = LearningRateTuner(iterations=8, progress=None).tune(module(FOMAML, torch.optim.Adam), batch())
    assert found.critical_outer_lr is None
    assert "rests on trials alone" in found.report()
    assert found.as_dict()["optimizer"] == "Adam"


def test_only_what_is_adapted_counts_for_the_inner_curvature():
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("body", nn.Linear(2, 2, bias=False))
    network.add_module("head", nn.Linear(2, 1, bias=False))
    tuned, data = ANIL(network.double(), criterion=F.mse_loss), batch()
    expected = torch.linalg.eigvalsh(hessians(network.body(data.support[0]).detach()))[:, -1]
    torch.testing.assert_close(support_curvatures(tuned, data), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [ERM, FOMAML])
def test_bound_is_where_a_run_diverges(kind, momentum):
    def optimizer(parameters, rate=1.0):
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum)

    data, options = batch(), {} if kind is ERM else {"inner_lr": 0.02}
    tuned = module(optimizer=optimizer, **options) if kind is not ERM else erm(optimizer)
    bound = outer_bound(tuned, [each.detach() for each in tuned.parameters()], data)
    for factor in (0.97, 1.03):
        trained = copy.deepcopy(tuned)
        stepper = optimizer(trained.parameters(), factor * bound)
        losses = []
        for _ in range(400):
            stepper.zero_grad()
            loss = trained.training_loss(data)
            loss.backward()
            stepper.step()
            losses.append(loss.item())
        assert (losses[-1] > losses[0]) == (factor > 1)


def erm(optimizer=sgd):
    torch.manual_seed(0)
    return ERM(nn.Linear(2, 1, bias=False).double(), criterion=F.mse_loss, optimizer=optimizer)


@pytest.mark.parametrize("build", [erm, lambda: GradientPenalty(nn.Linear(2, 1, bias=False).double(), 1e-3, **SGD)])
def test_without_an_inner_loop_the_outer_rate_is_tuned_alone(build):
    tuned, lines = build(), []
    found = LearningRateTuner(iterations=20, progress=lines.append).tune(tuned, batch())
    assert (found.inner_lr, found.critical_inner_lr, found.inner_trials) == (None, None, ())
    assert found.loss < found.own[2]
    assert "inner rate" not in found.report() + "".join(lines)
    assert len(found.plot().axes) == 1
    found.apply(tuned)
    assert outer_rate(only_optimizer(tuned)) == pytest.approx(found.outer_lr)


def test_a_side_number_never_takes_the_trials_with_it(monkeypatch):
    class OwnLoss(MAML):
        """A loss of its own, with targets that the criterion could not take."""

        def loss(self, parameters, x, y):
            return (self.predict(parameters, x) - y.float()).square().mean()

    torch.manual_seed(0)
    tuned = OwnLoss(nn.Linear(2, 1, bias=False).double(), criterion=F.cross_entropy, optimizer=sgd, inner_lr=0.02)
    found = LearningRateTuner(iterations=4, progress=None, seeds=1).tune(tuned, batch())
    assert found.optimal_adaptation_lr is None
    lines = []
    monkeypatch.setattr("lightning_gp.tuning.tuner.tangent_kernel_rate", lambda *_: 1 / 0)
    found = LearningRateTuner(iterations=4, progress=lines.append, seeds=1).tune(module(), batch())
    assert found.optimal_adaptation_lr is None
    assert any("could not be had: ZeroDivisionError" in line for line in lines)


def test_seeds_have_batches_of_their_own():
    seen = []

    class Watched(MAML):
        def environment_terms(self, parameters, environments):
            seen.append(float(environments.support[0].sum()))
            return super().environment_terms(parameters, environments)

    torch.manual_seed(0)
    tuned = Watched(nn.Linear(2, 1, bias=False).double(), criterion=F.mse_loss, optimizer=sgd, inner_lr=0.02)
    stream = BatchStream([batch(seed=i) for i in range(10)])
    ObjectiveTrials(tuned, stream, 4, [0, 1])(0.01, 0.01)
    expected = [float(batch(seed=i).support[0].sum()) for i in range(10)]
    assert {round(value, 6) for value in expected} <= {round(value, 6) for value in seen}


def test_a_module_whose_own_outer_rate_diverges_is_tried_at_a_smaller_one():
    def steep(parameters):
        return torch.optim.SGD(parameters, lr=200.0)

    found = LearningRateTuner(iterations=20, progress=None).tune(module(optimizer=steep), batch())
    assert found.own == (0.02, 200.0, None)
    assert found.inner_trials_at < 200.0
    assert found.outer_lr < 200.0


def test_search_goes_on_at_the_border_and_survives_divergence():
    runs = search(lambda rate: None if rate > 3 else -rate, [0.5, 1.0], extra=4)
    assert [run.rate for run in runs] == pytest.approx([0.5, 1.0, 10 ** (1 / 3), 10 ** (2 / 3)])
    assert runs[-1].loss is None
    assert best_trial(runs).rate == pytest.approx(10 ** (1 / 3))
    assert best_trial([Trial(1.0, None)]) is None


def two_rates():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    return MAML(network, inner_lr={"0": 0.1, "1": 0.2}, criterion=F.mse_loss, optimizer=sgd)


class TwoOptimizers(MAML):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.2)]


class OwnOptimizer(MAML):
    def configure_optimizers(self):
        return {"optimizer": torch.optim.SGD(self.parameters(), lr=0.05)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(2, 1), "tunes a LightningModule"),
        (lambda: module(inner_optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), "inner_optimizer"),
        (two_rates, "looks for one"),
        (lambda: module(TwoOptimizers), "no single optimizer"),
    ],
)
def test_what_cannot_be_tuned_is_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LearningRateTuner(progress=None).tune(build(), batch())


def test_a_loss_that_is_not_finite_is_refused():
    data = batch()
    data.support[1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="nan on the first batch"):
        LearningRateTuner(progress=None).tune(module(), data)


def test_a_suggestion_is_not_put_where_it_has_no_effect():
    tuned = module(OwnOptimizer)
    found = LearningRateTuner(iterations=4, progress=None).tune(tuned, batch())
    with pytest.raises(ValueError, match="configure_optimizers of its own"):
        found.apply(tuned)
    assert tuned.inner_rates() == {"weight": 0.02}


@pytest.mark.parametrize("bad", [{"iterations": 3}, {"environments": 0}, {"tolerance": 1.0}, {"seeds": 0}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LearningRateTuner(**bad)
