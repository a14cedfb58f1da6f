"""Modules in real projects: what checkpoints hold and note, subclasses from files, schedulers, Lightning's tuner."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ERM, LIL, MAML, GradientPenalty, IRMv1
from lightning_gp._lightning import Trainer, pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.hyperparameters import plain
from lightning_gp.modules.arguments import describe, differ, savable
from lightning_gp.modules.schedulers import scheduler_config
from lightning_gp.networks import SinusoidMLP
from tests.module_cases import MODULES

SQUARED = {"criterion": F.mse_loss}
STEP = torch.optim.lr_scheduler


def net() -> nn.Module:
    torch.manual_seed(0)
    return SinusoidMLP([4])


def quiet(**options: object) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_epochs": 1, **options},
    )  # fmt: skip


def data(batches: int = 4) -> SinusoidDataModule:
    return SinusoidDataModule(
        environments_per_batch=2, iterations_per_epoch=batches, val_episodes=2, test_episodes=4, shots=3, queries=3
    )


def saved(module: pl.LightningModule, path: Path) -> Path:
    trainer = quiet()
    trainer.fit(module, data())
    trainer.save_checkpoint(path / "a.ckpt")
    return path / "a.ckpt"


def sgd(**options: float):
    return functools.partial(torch.optim.SGD, **options)


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()


# -- hyperparameters ----------------------------------------------------------------------------------------------

STRANGE = {
    "numpy scalar": (MAML, {"inner_lr": np.float32(0.01), "inner_steps": np.int64(2)}),
    "numpy in a dict": (MAML, {"inner_lr": {"body": np.float64(0.01), "head": np.float32(0.5)}}),
    "prefixes in an array": (MAML, {"adapt": list(np.array(["head"]))}),
    "LIL": (LIL, {"phase_weight": np.float32(0.1), "divergence": "gaussian", "inner_steps": np.int32(2)}),
    "penalty": (GradientPenalty, {"coefficient": {"head": np.float64(0.1)}}),
    "IRM": (IRMv1, {"penalty_weight": np.float32(2), "anneal_steps": np.int64(1), "vectorize": False}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_hyperparameters_are_plain_and_the_run_can_be_resumed(tmp_path, name):
    cls, options = STRANGE[name]
    path = saved(cls(net(), **SQUARED, **options), tmp_path)
    held = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {key: held[key] for key in options if key in held} == {k: plain(v) for k, v in options.items() if k in held}
    quiet(max_epochs=2).fit(cls(net(), **SQUARED, **options), data(), ckpt_path=path)
    cls.load_from_checkpoint(path, network=net(), **SQUARED)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_saved_plain_and_resumed(tmp_path, name):
    case = MODULES[name]

    def fit(epochs: int, **arguments: object) -> Trainer:
        torch.manual_seed(0)
        trainer = quiet(max_epochs=epochs, limit_train_batches=1, limit_val_batches=0, precision="64-true")
        trainer.fit(case.module(case.network(), **case.options).double(), case.data(), **arguments)
        return trainer

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["algorithm"] == case.module.__name__
    assert fit(2, ckpt_path=tmp_path / "a.ckpt").current_epoch == 2


class Helped(MAML):
    """A subclass with arguments that no checkpoint can hold, and that calls Lightning's method by itself."""

    def __init__(self, network, helper=None, root=Path("a"), factor=1.0, **kwargs):
        super().__init__(network, **kwargs)
        self.save_hyperparameters()
        self.helper = helper


def test_a_subclass_saves_what_it_can_and_notes_the_rest(tmp_path):
    path = saved(Helped(net(), helper=absolute, root=Path("b"), factor=np.float32(2), **SQUARED), tmp_path)
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["root"] == "b"
    assert content["hyper_parameters"]["factor"] == 2.0
    assert content["given"] == {"criterion": "torch.nn.functional.mse_loss", "helper": f"{__name__}.absolute"}
    with pytest.raises(ValueError, match=r"helper=.*absolute"):
        Helped.load_from_checkpoint(path, network=net(), **SQUARED)
    assert Helped.load_from_checkpoint(path, network=net(), helper=absolute, **SQUARED).hparams["root"] == "b"


# -- what a checkpoint cannot hold --------------------------------------------------------------------------------

UNSAVED = {
    "criterion": (MAML, {}, {"criterion": F.mse_loss}, "criterion=torch.nn.functional.mse_loss"),
    "a module": (ERM, {}, {"criterion": nn.HuberLoss(delta=0.5)}, "delta=0.5"),
    "a lambda": (ERM, {}, {"criterion": lambda a, b: (a - b).square().mean()}, "<lambda>"),
    "inner optimizer": (MAML, SQUARED, {"inner_optimizer": sgd(lr=0.05, momentum=0.9)}, "SGD(…, lr=0.05, momentum=0.9"),
    "adapt": (MAML, SQUARED, {"adapt": lambda name: "head" in name}, "adapt="),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_loading_without_what_was_given_is_refused(tmp_path, name):
    cls, options, lost, message = UNSAVED[name]
    module = cls(net(), **options, **lost)
    path = saved(module, tmp_path)
    with pytest.raises(ValueError, match="no checkpoint holds") as caught:
        cls.load_from_checkpoint(path, network=net(), **options)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="no checkpoint holds"):
        quiet().test(cls(net(), **options), data(), ckpt_path=path, verbose=False)
    loaded = cls.load_from_checkpoint(path, network=net(), **options, **lost)
    before, after = (quiet().test(each, data(), verbose=False)[0] for each in (module, loaded))
    assert before == after


@pytest.mark.parametrize("lost", [{"optimizer": sgd(lr=0.1)}, {"lr_scheduler": lambda o: STEP.StepLR(o, 1)}])
def test_an_optimizer_is_missed_only_where_it_is_needed(tmp_path, lost):
    path = saved(MAML(net(), **SQUARED, **lost), tmp_path)
    loaded = MAML.load_from_checkpoint(path, network=net(), **SQUARED)
    quiet().test(loaded, data(), verbose=False)
    with pytest.raises(ValueError, match=f"{next(iter(lost))}="):
        quiet().fit(loaded, data())
    quiet().fit(MAML.load_from_checkpoint(path, network=net(), **SQUARED, **lost), data())


class Fixed(MAML):
    """What a subclass gives to its parent comes back by itself."""

    def __init__(self, network):
        super().__init__(network, criterion=F.mse_loss, inner_optimizer=sgd(lr=0.1))


def test_what_a_subclass_sets_itself_is_not_missed(tmp_path):
    Fixed.load_from_checkpoint(saved(Fixed(net()), tmp_path), network=net())


RESUMED = {
    "criterion": (SQUARED, {"criterion": F.l1_loss}, "criterion is torch.nn.functional.mse_loss there"),
    "a lambda": (
        {**SQUARED, "adapt": lambda name: "head" in name},
        {**SQUARED, "adapt": lambda name: "body" in name},
        "adapt is",
    ),
    "rate": (
        {**SQUARED, "optimizer": sgd(lr=0.1)},
        {**SQUARED, "optimizer": sgd(lr=0.2)},
        "SGD's lr is 0.1 there but 0.2 here",
    ),
    "rate in a lambda": (
        {**SQUARED, "optimizer": lambda p: torch.optim.Adam(p, lr=0.1)},
        {**SQUARED, "optimizer": lambda p: torch.optim.Adam(p, lr=0.2)},
        "Adam's lr is 0.1 there but 0.2 here",
    ),
    "class": ({**SQUARED, "optimizer": sgd(lr=0.1)}, SQUARED, "the optimizer is SGD there but Adam here"),
    "a scheduler less": ({**SQUARED, "lr_scheduler": lambda o: STEP.StepLR(o, 2)}, SQUARED, "StepLR there but missing"),
    "a scheduler more": (SQUARED, {**SQUARED, "lr_scheduler": lambda o: STEP.StepLR(o, 2)}, "missing there but"),
    "its argument": (
        {**SQUARED, "lr_scheduler": lambda o: STEP.StepLR(o, 2)},
        {**SQUARED, "lr_scheduler": lambda o: STEP.StepLR(o, 3)},
        "StepLR's step_size is 2 there but 3 here",
    ),
    "inner optimizer": (
        {**SQUARED, "inner_optimizer": sgd(lr=0.1)},
        {**SQUARED, "inner_optimizer": sgd(lr=0.2)},
        "lr=0.2",
    ),
    "no longer given": ({**SQUARED, "inner_optimizer": sgd(lr=0.1)}, SQUARED, "inner_optimizer="),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_with_something_else_is_refused_by_name(tmp_path, name):
    first, second, message = RESUMED[name]
    path = saved(MAML(net(), **first), tmp_path)
    quiet(max_epochs=2).fit(MAML(net(), **first), data(), ckpt_path=path)  # the same is followed
    with pytest.raises(ValueError, match="checkpoint") as caught:
        quiet(max_epochs=2).fit(MAML(net(), **second), data(), ckpt_path=path)
    assert message in str(caught.value)


def test_a_run_is_compared_also_at_the_second_resumption(tmp_path):
    scheduled_run = {**SQUARED, "optimizer": sgd(lr=0.1), "lr_scheduler": lambda o: STEP.ExponentialLR(o, 0.5)}
    path = saved(MAML(net(), **scheduled_run), tmp_path)
    trainer = quiet(max_epochs=2)
    trainer.fit(MAML(net(), **scheduled_run), data(), ckpt_path=path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    quiet(max_epochs=3).fit(MAML(net(), **scheduled_run), data(), ckpt_path=tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"SGD's lr is 0\.1 there but 0\.3 here"):
        quiet(max_epochs=3).fit(
            MAML(net(), **{**scheduled_run, "optimizer": sgd(lr=0.3)}), data(), ckpt_path=tmp_path / "b.ckpt"
        )


DESCRIBED = {
    "function": (F.mse_loss, "torch.nn.functional.mse_loss"),
    "partial": (sgd(lr=0.1), "torch.optim.sgd.SGD(…, lr=0.1)"),
    "module": (nn.L1Loss(reduction="sum"), "torch.nn.modules.loss.L1Loss(reduction='sum')"),
    "list": ([F.l1_loss, 3], "[torch.nn.functional.l1_loss, 3]"),
    "plain": (np.float64(0.5), "0.5"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions(name):
    value, text = DESCRIBED[name]
    assert describe(value) == text


def test_lambdas_are_told_apart_by_what_they_do():
    def scaled(factor):
        return lambda a: factor * a

    assert not differ(describe(scaled(2)), describe(scaled(2)))
    assert differ(describe(scaled(2)), describe(scaled(3)))
    assert differ(describe(scaled(2)), describe(F.mse_loss))
    assert not differ("m.<lambda> [Python 3.10, aaa]", "m.<lambda> [Python 3.12, bbb]")
    assert not savable({"a": [scaled(2)]})


# -- schedulers ---------------------------------------------------------------------------------------------------

ONE_CYCLE = functools.partial(STEP.OneCycleLR, max_lr=0.1, total_steps=13)
CYCLIC = functools.partial(STEP.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=6)
PLATEAU = functools.partial(STEP.ReduceLROnPlateau, patience=0, threshold=10.0, factor=0.5)


def warm(optimizer):
    parts = [STEP.ConstantLR(optimizer), STEP.OneCycleLR(optimizer, max_lr=0.1, total_steps=11)]
    return STEP.SequentialLR(optimizer, parts, milestones=[2])


SCHEDULES = {  # of three epochs of four steps: how many rates the steps see, at least and at most
    "OneCycleLR": (ONE_CYCLE, 12, 12),
    "CyclicLR": (CYCLIC, 7, 12),
    "in SequentialLR": (warm, 9, 12),
    "StepLR": (lambda o: STEP.StepLR(o, 1), 3, 3),
    "restarts": (lambda o: STEP.CosineAnnealingWarmRestarts(o, 5), 3, 3),
    "StepLR by step": ({"scheduler": lambda o: STEP.StepLR(o, 1), "interval": "step"}, 12, 12),
    "every second step": ({"scheduler": lambda o: STEP.StepLR(o, 1), "interval": "step", "frequency": 2}, 6, 6),
    "plateau": (PLATEAU, 2, 3),
    "plateau of the training loss": ({"scheduler": PLATEAU, "monitor": "train/loss"}, 2, 3),
    "a function that gives the dict": (lambda o: {"scheduler": ONE_CYCLE(o), "interval": "step"}, 12, 12),
    "none": (None, 1, 1),
}


class Recorded(MAML):
    def on_train_start(self):
        self.rates = []

    def on_train_batch_start(self, *args):
        self.rates.append(self.optimizers().param_groups[0]["lr"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_step_when_they_should(name):
    schedule, least, most = SCHEDULES[name]
    module = Recorded(net(), **SQUARED, optimizer=sgd(lr=0.01, momentum=0.9), lr_scheduler=schedule)
    quiet(max_epochs=3).fit(module, data(4))
    assert least <= len(set(module.rates)) <= most


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (3, TypeError, "lr_scheduler=3"),
        ({"scheduler": 3}, TypeError, "lr_scheduler=3"),
        ({"interval": "step"}, ValueError, "'scheduler'"),
        ({"scheduler": PLATEAU, "watch": "val/loss"}, ValueError, "monitor"),
        ({"scheduler": PLATEAU, "interval": "batch"}, ValueError, "interval='batch' is unknown"),
        ({"scheduler": PLATEAU, "frequency": 0}, ValueError, "frequency=0"),
    ],
)
def test_other_schedules_are_refused(schedule, error, message):
    with pytest.raises(error) as caught:
        MAML(net(), **SQUARED, lr_scheduler=schedule)
    assert message in str(caught.value)


def test_plateau_watches_validation():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert scheduler_config(PLATEAU, optimizer, True)["monitor"] == "val/loss"
    assert scheduler_config({"scheduler": PLATEAU, "monitor": "a"}, optimizer, True)["monitor"] == "a"


# -- Lightning's tuner --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [MAML, ERM])
@pytest.mark.parametrize("schedule", [None, ONE_CYCLE], ids=["no scheduler", "scheduler"])
def test_lr_find_runs_and_its_suggestion_is_used(tmp_path, cls, schedule):
    module = cls(net(), **SQUARED, lr_scheduler=schedule)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = quiet(default_root_dir=tmp_path)
    found = pl.tuner.Tuner(trainer).lr_find(module, datamodule=data(40), num_training=30, early_stop_threshold=None)
    assert len(found.results["lr"]) == 30
    assert module.learning_rate == found.suggestion() is not None
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())
    module.lr_scheduler = None
    assert module.configure_optimizers().param_groups[0]["lr"] == found.suggestion()
    trainer = quiet()
    trainer.fit(module, data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == found.suggestion()
