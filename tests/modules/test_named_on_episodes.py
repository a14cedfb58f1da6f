"""Modules for named environments on episodes, where position e of a batch is another environment each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import IRMv1, REx
from lightning_gp._lightning import pl
from lightning_gp.callbacks import HessianEigenvalues
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP


def fit(module, data, *callbacks):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), enable_model_summary=False, **quiet)
    run.fit(module, data)
    return run.callback_metrics


def test_the_penalty_is_the_mean_over_episodes_and_there_are_no_names():
    data = SinusoidDataModule(environments_per_batch=4, iterations_per_epoch=2, val_episodes=8)
    module = IRMv1(SinusoidMLP([8]), penalty_weight=3.0, criterion=F.mse_loss)
    logged = fit(module, data)
    losses, penalties = [], []
    for batch in data.val_dataloader():
        for x, y in zip(*batch.split("query"), strict=True):
            scale = torch.ones((), requires_grad=True)
            loss = F.mse_loss(scale * module.network(x), y)
            losses.append(loss.detach())
            penalties.append(torch.autograd.grad(loss, scale)[0].square())
    loss, penalty = sum(losses) / 8, sum(penalties) / 8
    assert float(logged["val/penalty"]) == pytest.approx(float(penalty), rel=1e-5)
    assert float(logged["val/objective"]) == pytest.approx(float(loss + 3 * penalty), rel=1e-5)
    assert not any(key.startswith(("val/loss/", "val/worst")) for key in logged)


def test_the_curvature_of_a_coupled_objective_is_that_of_the_whole_batch():
    module = REx(nn.Linear(1, 1), penalty_weight=3.0, criterion=F.mse_loss)
    by_objective = HessianEigenvalues(k=1, objective="training", tol=1e-6)
    by_hand = HessianEigenvalues(
        k=1, tol=1e-6, prefix="hand/", loss_fn=lambda module, batch: module.training_loss(batch)
    )
    data = SinusoidDataModule(environments_per_batch=4, iterations_per_epoch=2, val_episodes=4)
    fit(module, data, by_objective, by_hand)
    wanted = by_hand.values["hand/curvature/eigenvalue_1"]
    assert wanted > 0
    assert by_objective.values["curvature/eigenvalue_1"] == pytest.approx(wanted, rel=1e-4)


def test_the_curvature_of_a_coupled_objective_has_no_value_for_one_episode():
    module = REx(SinusoidMLP([8]), criterion=F.mse_loss)
    watch = HessianEigenvalues(objective="training", episodes=4)
    with pytest.raises(ValueError, match=r"objective of REx couples the environments.*leave episodes=None"):
        pl.Trainer(accelerator="cpu", logger=False, callbacks=[watch]).validate(
            module, SinusoidDataModule(environments_per_batch=4), verbose=False
        )
