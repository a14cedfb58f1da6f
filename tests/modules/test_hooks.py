"""A subclass that overrides a hook of Lightning's and does not call super() gets the same weights and numbers."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import MAML, IRMv1
from lightning_gp._lightning import Callback, pl
from lightning_gp.datamodules import ExampleEnvironments, SinusoidDataModule
from lightning_gp.modules.hooks import always, complete_hooks
from lightning_gp.networks import SinusoidMLP

HOOKS = [
    *("setup", "on_fit_start", "on_save_checkpoint", "on_load_checkpoint", "on_train_start", "on_train_epoch_end"),
    *("on_validation_epoch_start", "on_validation_epoch_end", "on_test_epoch_start", "on_test_epoch_end"),
    *("on_validation_start", "on_test_start", "on_before_zero_grad", "on_train_batch_start"),
]


def environments():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 8, 3, generator=generator), torch.randn(3, 8, 1, generator=generator)
    return ExampleEnvironments({"a": (x[0], y[0]), "b": (x[1], y[1])}, {"c": (x[2], y[2])})


EPISODES = partial(SinusoidDataModule, 3, iterations_per_epoch=2, val_episodes=5, test_episodes=5)
KINDS = {
    "MAML": (
        MAML,
        SinusoidMLP,
        partial(SinusoidDataModule, 3, iterations_per_epoch=2, val_episodes=5, test_episodes=5),
    ),
    "IRMv1": (IRMv1, partial(nn.Linear, 3, 1), environments),
}


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def outcome(kind, network, data):
    pl.seed_everything(0, verbose=False)
    module, recorder = kind(network(), criterion=F.mse_loss), Recorder()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[recorder],
        num_sanity_val_steps=1,
        **quiet,
    )
    trainer.fit(module, data())
    (tested,) = trainer.test(module, data(), verbose=False)
    return [value.tolist() for value in module.state_dict().values()], recorder.seen, tested


@pytest.fixture(scope="module")
def expected():
    return {name: outcome(*parts) for name, parts in KINDS.items()}


@pytest.mark.parametrize("mixin", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_numbers_are_the_same(kind, hook, mixin, expected):
    module, network, data = KINDS[kind]
    ran = []
    own = {hook: lambda self, *args, **kwargs: ran.append(hook)}
    bases = (type("Mixin", (), own), module) if mixin else (module,)
    assert outcome(type("Own", bases, {} if mixin else own), network, data) == expected[kind]
    assert bool(ran) == (hook not in ("on_save_checkpoint", "on_load_checkpoint"))


def test_what_the_override_calls_runs_once_and_in_its_place():
    ran = []

    class Base:
        def __init_subclass__(cls):
            complete_hooks(cls)

        @always
        def hook(self):
            ran.append("base")

    class Calls(Base):
        def hook(self):
            ran.append("before")
            super().hook()
            ran.append("after")

    class Forgets(Calls):
        def hook(self):
            ran.append("forgets")

    for _ in range(2):
        Forgets().hook()
    assert ran == ["forgets", "before", "base", "after"] * 2
