"""The tuner on modules that know nothing of this package: its trials against runs written out here."""

import json
import statistics
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gp.cli import main
from lightning_gp.tuning import LearningRateTuner
from lightning_gp.tuning.trials import around
from tests.callbacks.callback_cases import Classifier, Manual, build, examples, loaders

CURVATURES = torch.tensor([8.0, 2.0], dtype=torch.float64)


class Quadratic(pl.LightningModule):
    """½ Σ hᵢ wᵢ²: every loss of a trial has a closed form."""

    def __init__(self, rate=0.02, optimizer=torch.optim.SGD, automatic=True):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.make, self.rate, self.automatic_optimization = optimizer, rate, automatic

    def training_step(self, batch, batch_idx):
        loss = (CURVATURES * self.weights.square()).sum() / 2
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=self.rate)


def late_loss(rate, iterations):
    """Mean of L(w_k), w_k = (1 − βh)ᵏ w₀, over the last quarter."""
    start = Quadratic().weights.detach()
    steps = [k for k in range(iterations + 1) if k >= 0.75 * iterations]
    return statistics.fmean(
        float((CURVATURES * ((1 - rate * CURVATURES) ** k * start).square()).sum() / 2) for k in steps
    )


def batches(count=3):
    return DataLoader(TensorDataset(torch.zeros(count, 1)), 1)


def test_trials_are_those_of_the_module():
    module = Quadratic()
    found = LearningRateTuner(iterations=8, tolerance=0.5, seeds=1, progress=None).tune(module, batches())
    assert found.critical_outer_lr == pytest.approx(2 / 8, rel=1e-2)
    assert set(around(found.critical_outer_lr / 2, 4, 2)) | {0.02} <= {trial.rate for trial in found.outer_trials}
    assert found.outer_trials[-1].loss is None  # 2.3 times the critical rate
    check_trials(found)
    assert (found.inner_lr, found.optimizer) == (None, "SGD")
    assert found.own == (None, 0.02, pytest.approx(late_loss(0.02, 8), rel=1e-6))
    with pytest.raises(ValueError, match="Quadratic has a configure_optimizers of its own"):
        found.apply(module)


def test_manual_optimization_has_trials_without_an_edge():
    lines = []
    tuner = LearningRateTuner(iterations=8, tolerance=0.5, seeds=1, progress=lines.append)
    found = tuner.tune(Quadratic(automatic=False), batches())
    assert found.critical_outer_lr is None
    assert any("could not be had: ValueError" in line for line in lines)
    check_trials(found)


def check_trials(found):
    rates = [rate for rate, loss in found.outer_trials if loss is not None]
    for rate, loss in found.outer_trials:
        assert loss is None or loss == pytest.approx(late_loss(rate, 8), rel=1e-6)
    lowest = min(late_loss(rate, 8) for rate in rates)
    assert found.outer_lr == min(rate for rate in rates if late_loss(rate, 8) <= 1.5 * lowest)


def test_a_rate_that_diverges_is_out():
    found = LearningRateTuner(iterations=40, progress=None, seeds=1).tune(Quadratic(rate=200.0), batches())
    assert found.own == (None, 200.0, None)
    assert found.outer_lr < found.critical_outer_lr == pytest.approx(0.25, rel=1e-2)
    assert "module's own: outer rate 200: diverged" in found.report()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Rprop])
def test_classifier_stays_as_it_is(optimizer):
    """Rprop's edge is not known, and its trials are had all the same."""

    class Own(Classifier):
        def configure_optimizers(self):
            return optimizer(self.parameters(), lr=0.003)

    module, lines = build(Own), []
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found = LearningRateTuner(iterations=8, progress=lines.append, seeds=1).tune(module, loaders()[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (module.steps, module._trainer) == (0, None)
    assert (found.optimizer, found.critical_outer_lr) == (optimizer.__name__, None)
    assert found.loss <= found.own[2] * 1.02
    assert any("Rprop is not known here" in line for line in lines) == (optimizer is torch.optim.Rprop)


class Scheduled(Quadratic):
    """Every way to change a rate behind the tuner's back."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 1000)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": warm, "interval": "step"}, {"scheduler": plateau, "monitor": "val/loss"}]

    def training_step(self, batch, batch_idx):
        self.lr_schedulers()[0].get_last_lr()
        self.logger.experiment.add_scalar("loss", 0.0)
        return super().training_step(batch, batch_idx)

    def on_train_batch_start(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 123.0


def test_a_trial_has_one_rate():
    found = LearningRateTuner(iterations=8, tolerance=0.5, progress=None, seeds=1).tune(Scheduled(), batches())
    assert found.own[1] == 0.01
    check_trials(found)


class Watching(Classifier):
    """Notes the batches that each run sees."""

    seen: ClassVar[list[list[float]]] = []

    def on_fit_start(self):
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        self.seen[-1].append(float(batch[0].sum()))
        return super().training_step(batch, batch_idx)


def test_rates_share_batches_and_seeds_do_not():
    Watching.seen.clear()
    LearningRateTuner(iterations=4, progress=None, seeds=2).tune(build(Watching), loaders()[0])
    runs = {tuple(run) for run in Watching.seen if len(run) == 5}
    assert len(runs) == 2


class Breaking(Quadratic):
    """Weights that are infinite before a loss is, which the module itself refuses."""

    def training_step(self, batch, batch_idx):
        if not self.weights.isfinite().all():
            raise ValueError("expected finite weights")
        return super().training_step(batch, batch_idx)

    def on_before_zero_grad(self, optimizer):
        if self.weights.abs().max() > 50:
            self.weights.data.fill_(float("inf"))


class Broken(Quadratic):
    def training_step(self, batch, batch_idx):
        raise ValueError("no such column")


class Silent(Quadratic):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


class NotANumber(Quadratic):
    def training_step(self, batch, batch_idx):
        return self.weights.sum() * float("nan")


def test_a_module_that_raises_where_its_weights_are_broken_has_diverged():
    found = LearningRateTuner(iterations=20, progress=None, seeds=1).tune(Breaking(), batches())
    assert found.outer_trials[-1].loss is None
    assert found.outer_lr < 0.25


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (Broken, batches, "no such column"),
        (lambda: Silent(automatic=False), batches, "let training_step return its loss"),
        (NotANumber, batches, "nan on the first batch"),
        (Manual, lambda: loaders()[0], "gives 2 optimizers"),
        (lambda: Quadratic(rate=0.0), batches, "there must be one above 0"),
        (Quadratic, lambda: [], "no training batch"),
        (pl.LightningModule, batches, "training_step"),
    ],
)
def test_what_cannot_be_tuned_is_refused(module, data, message):
    with pytest.raises(ValueError, match=message):
        LearningRateTuner(iterations=4, progress=None).tune(module(), data())


class Examples(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*examples()), 8, shuffle=True)


def test_command_line(tmp_path, capsys):
    home = "tests.tuning.test_any_module"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model:\n  class_path: tests.callbacks.callback_cases.Classifier\ndata:\n  class_path: {home}.Examples\n"
        "trainer:\n  accelerator: cpu\n"
    )
    words = ["--tune.iterations=4", "--tune.seeds=1", f"--tune.output={tmp_path}"]
    assert main(["tune", "--config", str(config), *words]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "tune.json").read_text())
    assert written["inner_lr"] is None
    assert f"suggested:   outer rate {written['outer_lr']:.4g}" in printed
    assert f"configure_optimizers of its own, which decides the outer rate: set {written['outer_lr']:.4g}" in printed
    assert (tmp_path / "tune.png").stat().st_size > 1000
