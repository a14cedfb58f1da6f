"""Runs that are interrupted, more than once, end bitwise like those that are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightning_gp import ERM, MAML, IRMv1
from lightning_gp._lightning import Trainer, pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP
from tests.module_cases import classifier, shared

BINARY = {"criterion": F.binary_cross_entropy_with_logits}
SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=13)
PLATEAU = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0)


def sinusoids() -> pl.LightningDataModule:
    return SinusoidDataModule(
        environments_per_batch=2, iterations_per_epoch=4, val_episodes=2, shots=3, queries=3, dtype="float64"
    )


def mini_batches() -> pl.LightningDataModule:
    return shared(batch_size=4, steps_per_epoch=4, val_fraction=0.3)


def maml(**options: object) -> Callable[[], pl.LightningModule]:
    return lambda: MAML(SinusoidMLP([4]), criterion=F.mse_loss, optimizer=SGD, **options).double()


RUNS = {
    "MAML": (maml(), sinusoids, {}),
    "accumulation": (maml(), sinusoids, {"accumulate_grad_batches": 2}),
    "accumulation over the end of an epoch": (maml(), sinusoids, {"accumulate_grad_batches": 3}),
    "OneCycleLR": (maml(lr_scheduler=ONE_CYCLE), sinusoids, {}),
    "plateau": (maml(lr_scheduler=PLATEAU), sinusoids, {}),
    "StepLR": (maml(lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)), sinusoids, {}),
    "ERM, mini-batches": (lambda: ERM(classifier(), **BINARY).double(), mini_batches, {}),
    "IRMv1, mini-batches": (
        lambda: IRMv1(classifier(), penalty_weight=10.0, anneal_steps=3, optimizer=SGD, **BINARY).double(),
        mini_batches,
        {},
    ),
    "ERM, mini-batches, accumulation": (
        lambda: ERM(classifier(), **BINARY).double(),
        mini_batches,
        {"accumulate_grad_batches": 2},
    ),
}


class Stop(pl.Callback):
    """Ends the run as a kill does, with the checkpoint of ``every`` step as the last trace of it."""

    def __init__(self, step: int | None, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(tmp_path, name):
    make, data, options = RUNS[name]

    def attempt(stop: int | None, start: Path | None, end: Path) -> dict[str, torch.Tensor]:
        pl.seed_everything(3, verbose=False)
        module = make()
        trainer = Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Stop(stop, end)], **options,
        )  # fmt: skip
        try:
            trainer.fit(module, data(), ckpt_path=start)
        except InterruptedError:
            return {}
        return module.state_dict()

    whole = attempt(None, None, tmp_path / "none")
    first, second = (1, 3) if "accumulate_grad_batches" in options else (3, 6)
    assert attempt(first, None, tmp_path / "a.ckpt") == {}
    assert attempt(second, tmp_path / "a.ckpt", tmp_path / "b.ckpt") == {}
    resumed = attempt(None, tmp_path / "b.ckpt", tmp_path / "none")
    assert resumed.keys() == whole.keys()
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]


@pytest.mark.parametrize("name", ["MAML", "StepLR", "plateau", "OneCycleLR"])
@pytest.mark.parametrize("at_end", [False, True], ids=["after validation", "at the end of the epoch"])
def test_a_checkpoint_of_an_epochs_end_leads_to_the_same_end(tmp_path, name, at_end):
    make, data, _ = RUNS[name]

    def fit(folder: Path, start: Path | None) -> dict[str, torch.Tensor]:
        pl.seed_everything(3, verbose=False)
        module = make()
        Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=at_end)],
        ).fit(module, data(), ckpt_path=start)  # fmt: skip
        return module.state_dict()

    whole = fit(tmp_path / "whole", None)
    resumed = fit(tmp_path / "again", tmp_path / "whole" / "epoch=0.ckpt")
    resumed_twice = fit(tmp_path / "third", tmp_path / "again" / "epoch=1.ckpt")
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert not [key for key in whole if not torch.equal(whole[key], resumed_twice[key])]
