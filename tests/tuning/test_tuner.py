"""The tuner: curvatures against closed forms, the search, and that it leaves everything as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, FOMAML, MAML, Environments, GradientPenalty
from lightning_gp.modules.schedulers import outer_rate
from lightning_gp.theory import critical_outer_lr, optimal_adaptation_lr
from lightning_gp.tuning import LearningRateTuner
from lightning_gp.tuning.curvature import outer_bound, support_curvatures
from lightning_gp.tuning.trials import Trial, best_trial, only_optimizer, search


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


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
    mean = torch.linalg.eigvalsh(hessians(data.query[0]).mean(0)).flip(0)
    assert found.critical_outer_lr == pytest.approx(float(critical_outer_lr(mean, found.inner_lr, "maml")), rel=1e-3)

    losses = [run.loss for run in found.outer_trials if run.loss is not None]
    assert found.loss == min(losses)
    assert found.loss < found.own[2]
    assert any(run.rate == 0.02 for run in found.inner_trials)
    assert any(run.rate == 0.05 for run in found.outer_trials)
    assert len(lines) >= len(found.inner_trials) + len(found.outer_trials)
    assert "bound of the outer rate by theory" in found.report()
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


def test_beyond_the_inner_bound_that_without_an_inner_loop_is_given():
    data, tuned = batch(), module(FOMAML)
    mean = torch.linalg.eigvalsh(hessians(data.query[0]).mean(0))
    trained = [torch.zeros(1, 2, dtype=torch.float64)]
    assert outer_bound(tuned, trained, data, 10.0) == pytest.approx(float(2 / mean.max()), rel=1e-3)


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
        (lambda: GradientPenalty(nn.Linear(2, 1), criterion=F.mse_loss), "has no inner rate"),
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


@pytest.mark.parametrize("bad", [{"iterations": 3}, {"environments": 0}, {"tolerance": 1.0}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LearningRateTuner(**bad)
