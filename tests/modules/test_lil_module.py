"""LIL as a module: what users override, what is logged, and its arguments."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import LIL
from lightning_gp._lightning import pl
from lightning_gp.environments import Environments
from tests.cases import flat, images, regression
from tests.modules.lil_cases import gradient, terms_of


class Overridden(LIL):
    def predict(self, parameters, x):
        return 2 * super().predict(parameters, x)

    def loss(self, parameters, x, y):
        return 3 * F.cross_entropy(self.predict(parameters, x), y)


def test_overridden_loss_and_predict_are_used():
    class Doubled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return 2 * self.network(x)

    setting = images()
    module = Overridden(setting.fresh(), 0.1, 3, amplitude_weight=0.2)
    reference = LIL(
        Doubled(setting.fresh()), 0.1, 3, amplitude_weight=0.2, criterion=lambda z, y: 3 * F.cross_entropy(z, y)
    )
    torch.testing.assert_close(
        gradient(module, setting.environments), gradient(reference, setting.environments), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("form", [True, False, 2, "auto"])
def test_the_terms_are_logged(form):
    setting = images()
    module = LIL(setting.fresh(), 0.1, 3, vectorize=form, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = fit(module, setting.environments)
    found = [float(trainer.callback_metrics[f"train/{name}"]) for name in ("task_loss", "phase_loss", "amplitude_loss")]
    assert found == pytest.approx(terms_of(module, setting.environments).tolist(), rel=1e-6)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(
        found[0] + 0.1 * found[1] + 0.01 * found[2], rel=1e-6
    )


def test_only_terms_with_a_weight_are_computed_and_logged():
    setting = images()
    trainer = fit(LIL(setting.fresh(), 0.1, adapt="head"), setting.environments)
    assert "train/phase_loss" in trainer.callback_metrics
    assert "train/amplitude_loss" not in trainer.callback_metrics


def fit(module, environments):
    options = {"max_steps": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", precision="64-true", enable_model_summary=False, **options)
    trainer.fit(module, torch.utils.data.DataLoader([environments], batch_size=None))
    return trainer


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "weight"),
    [({}, 0.01), ({"adapt": "head"}, 0), ({"adapt": "body"}, 0), ({"amplitude_weight": 0.1}, 0.1)],
)
def test_default_weights(options, weight):
    module = LIL(images().fresh(), **options)
    assert (module.phase_weight, module.amplitude_weight) == (0.1, weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase_weight": -0.1}, "phase_weight=-0.1 must be a finite number of at least 0"),
        ({"amplitude_weight": -1.0}, "amplitude_weight=-1.0 must be"),
        ({"amplitude_weight": float("nan")}, "amplitude_weight=nan must be"),
        ({"detach": "both"}, "detach='both' is unknown; use one of 'none', 'target', 'approximation'"),
        ({"divergence": "mse"}, "divergence='mse' is unknown; use one of 'kl', 'reverse_kl', 'gaussian'"),
        ({"criterion": F.mse_loss}, "criterion mse_loss is one of regression.*Choose divergence='gaussian'"),
        ({"criterion": nn.MSELoss()}, "criterion MSELoss is one of regression"),
        ({"recompute": True}, "LIL overrides environment_terms"),
        ({"compile": True}, "LIL overrides environment_terms"),
        ({"first_order": True, "inner_optimizer": torch.optim.Adam}, "first_order=True with an inner_optimizer"),
        ({"adapt": "tail"}, "adapt='tail' picks none"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LIL(images().fresh(), **options)


def test_one_step_warns():
    with pytest.warns(UserWarning, match="inner_steps=1: .*the phase loss is 0"):
        LIL(images().fresh(), inner_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LIL(images().fresh(), inner_steps=1, phase_weight=0)


def test_a_regression_is_refused_before_the_first_step():
    setting = regression()
    module = LIL(setting.fresh(), criterion=lambda outputs, y: (outputs - y).square().mean())
    before = flat(module.parameters()).clone()
    with pytest.raises(ValueError, match=r"targets are neither class labels.*divergence='gaussian'"):
        fit(module, setting.environments)
    assert flat(module.parameters()).equal(before)


def test_probabilities_of_classes_are_no_regression():
    (xs, ys), (xq, yq) = images().environments
    soft = [F.one_hot(y, 3).double() * 0.8 + 0.2 / 3 for y in (ys, yq)]
    fit(LIL(images().fresh()), Environments((xs, soft[0]), (xq, soft[1])))


def test_inner_optimizer_has_a_path_too():
    setting = images()
    module = LIL(setting.fresh(), inner_steps=3, inner_optimizer=lambda p: torch.optim.SGD(p, lr=setting.inner_lr))
    reference = LIL(setting.fresh(), setting.inner_lr, 3)
    torch.testing.assert_close(
        gradient(module, setting.environments), gradient(reference, setting.environments), rtol=1e-9, atol=1e-12
    )
