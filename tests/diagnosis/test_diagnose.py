"""``diagnose``: a card on anybody's module, with its numbers against the dense Hessian and nothing left changed."""

from __future__ import annotations

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gp import FOMAML, MAML, Environments, IRMv1, diagnose
from lightning_gp.cli import main
from lightning_gp.diagnosis.advice import advice
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import Classifier, build, loaders, sinusoid_data

CPU = {"accelerator": "cpu"}


class Regression(pl.LightningModule):
    """½ h w² in each of two directions; Adam's second moments of a constant gradient are its square."""

    def __init__(self, optimizer=torch.optim.SGD, rate=0.1):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.make, self.rate = optimizer, rate

    def training_step(self, batch, batch_idx):
        return (torch.tensor([8.0, 2.0], dtype=torch.float64) * self.weights.square()).sum() / 2

    def configure_optimizers(self):
        optimizer = self.make(self.parameters(), lr=self.rate)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]


def test_numbers_are_those_of_the_module_as_it_is():
    card = diagnose(Regression(), loaders()[0], steps=3, **CPU)
    assert card.values["curvature/eigenvalue_1"] == pytest.approx(8)
    assert card.values["learning_rates/outer_critical"] == pytest.approx(2 / 8, rel=1e-2)
    assert card.values["learning_rates/edge"] == pytest.approx(0.4, rel=1e-2)
    assert card.values["gradients/norm"] == pytest.approx(math.hypot(8, 4))
    assert (card.module, card.optimizer, card.parameters) == ("Regression", "SGD", 2)


def test_adam_has_the_moments_of_the_present_weights():
    """v̂ = g² at fixed weights, so P^{-1/2}HP^{-1/2} = diag(8/8, 2/4) and β_c = 2(1 + β₁)/(1 − β₁), without bias 38."""
    card = diagnose(Regression(torch.optim.Adam), loaders()[0], steps=200, **CPU)
    assert card.values["learning_rates/curvature"] == pytest.approx(1, rel=1e-2)
    assert card.values["learning_rates/outer_critical"] == pytest.approx(38, rel=1e-2)


@pytest.mark.parametrize("make", [lambda: build(Classifier), lambda: MAML(SinusoidMLP((4,)), criterion=F.mse_loss)])
def test_nothing_is_changed(make):
    module = make()
    data = loaders()[0] if isinstance(module, Classifier) else sinusoid_data(4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(module, data, steps=3, **CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module._trainer is None
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_refused_does_not_take_the_rest_with_it():
    module = build(Classifier)
    module.configure_optimizers = lambda: torch.optim.Rprop(module.parameters())
    card = diagnose(module, loaders()[0], steps=2, **CPU)
    assert "Rprop is not known here" in card.missing["LearningRateBounds"]
    assert {"gradients/norm", "curvature/eigenvalue_1"} <= card.values.keys()
    assert "LearningRateBounds was not measured" in str(card)


def test_a_module_that_cannot_train_says_why():
    class Broken(Classifier):
        def training_step(self, batch, batch_idx):
            raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        diagnose(build(Broken), loaders()[0], steps=2, **CPU)
    with pytest.raises(TypeError, match="takes a LightningModule, got Linear"):
        diagnose(nn.Linear(1, 1), loaders()[0])
    with pytest.raises(ValueError, match="steps=0"):
        diagnose(Regression(), loaders()[0], steps=0)


def test_a_checkpoint_brings_weights_and_moments(tmp_path):
    module = MAML(SinusoidMLP((4,)), criterion=F.mse_loss)
    trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=3, logger=False, enable_progress_bar=False, **CPU)
    x = torch.linspace(-3, 3, 20).reshape(2, 10, 1)
    data = DataLoader([Environments((x, x.sin()), (x, x.sin()))] * 4, batch_size=None)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    fresh = MAML(SinusoidMLP((4,)), criterion=F.mse_loss)
    card = diagnose(fresh, data, steps=2, ckpt_path=tmp_path / "own.ckpt", **CPU)
    own = diagnose(module, data, steps=2, **CPU)
    for key in ("gradients/norm", "curvature/eigenvalue_1"):
        assert card.values[key] == pytest.approx(own.values[key], rel=1e-4)
    assert card.values["learning_rates/curvature"] != pytest.approx(own.values["learning_rates/curvature"], rel=1e-2)


def test_advice_names_what_to_change():
    high = {"learning_rates/edge": 3.0, "learning_rates/outer": 0.3, "learning_rates/outer_critical": 0.1}
    assert "3 times the largest" in advice(high)[0]
    low = {**high, "learning_rates/edge": 0.01}
    assert advice(low)[0].startswith("There is room")
    assert "oppose" in advice({"gradients/cosine": -0.5})[0]
    assert "1/λ_max" in advice({"learning_rates/inner_ratio": 2.0, "learning_rates/inner_critical": 0.1})[0]
    assert "residuals" in advice({"curvature/converged": 0.0})[0]
    assert advice({}) == []


@pytest.mark.parametrize("kind", [MAML, FOMAML, IRMv1])
def test_card_in_three_forms(kind):
    card = diagnose(kind(SinusoidMLP((4,)), criterion=F.mse_loss), sinusoid_data(4), steps=2, **CPU)
    text = str(card)
    assert f"{card.values['learning_rates/edge']:.4g}" in text
    assert text in card._repr_html_().replace("&#x27;", "'")
    written = json.loads(json.dumps(card.as_dict()))
    assert written["values"]["learning_rates/edge"] == card.values["learning_rates/edge"]
    assert len(card.plot().axes) == 3


def test_command_prints_the_card_and_writes_it(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    config = Path(__file__).parents[2] / "examples" / "sinusoid_maml.yaml"
    monkeypatch.chdir(tmp_path)
    words = ["diagnose", "--config", str(config), "--trainer.accelerator=cpu", "--steps", "2", "--output", "card"]
    assert main([*words, "--data.init_args.environments_per_batch=4"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "card" / "diagnose.json").read_text())
    assert f"{written['values']['learning_rates/edge']:.4g}" in printed
    assert (tmp_path / "card" / "diagnose.png").stat().st_size > 1000
