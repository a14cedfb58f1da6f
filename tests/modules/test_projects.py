"""Modules in other people's projects: checkpoints that say what they lack, schedulers, subclasses in configurations."""

from __future__ import annotations

import functools
import http.server
import os
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, ERM, FOMAML, LIL, MAML, GradientPenalty, IRMv1, REx
from lightning_gp._lightning import pl
from lightning_gp.checkpoints import WholeCheckpoints
from lightning_gp.cli import main
from lightning_gp.commands.training import save_beside
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SQUARED = {"criterion": F.mse_loss}


def data(**options):
    return SinusoidDataModule(environments_per_batch=4, **{"iterations_per_epoch": 4, "val_episodes": 4, **options})


def trained(tmp_path, build, **options):
    """A module after an epoch, and its checkpoint."""
    pl.seed_everything(0, verbose=False)
    module = build()
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path, **{**QUIET, **options})
    trainer.fit(module, data())
    path = str(tmp_path / "a.ckpt")
    trainer.save_checkpoint(path)
    return module, path


# -- nothing that was not saved defaults in silence --------------------------------------------------------------


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def only_head(name):
    return name.startswith("head")


class Own(MAML):
    """An argument that is no hyperparameter."""

    def __init__(self, network, scale=None, **kwargs):
        super().__init__(network, **kwargs)
        self.hparams.pop("scale", None)
        self.scale = scale

    def predict(self, parameters, x):
        outputs = super().predict(parameters, x)
        return outputs if self.scale is None else self.scale(outputs)


UNSAVED = {
    "criterion": (MAML, {"criterion": F.huber_loss}, {}, "torch.nn.functional.huber_loss"),
    "criterion, a module": (MAML, {"criterion": nn.SmoothL1Loss()}, {}, r"criterion=.*SmoothL1Loss\(beta=1.0"),
    "criterion of ERM": (ERM, {"criterion": F.mse_loss}, {}, "criterion="),
    "criterion of IRMv1": (IRMv1, {"criterion": F.mse_loss}, {}, "criterion="),
    "criterion of REx": (REx, {"criterion": F.mse_loss}, {}, "criterion="),
    "criterion of GradientPenalty": (GradientPenalty, {"criterion": F.mse_loss}, {}, "criterion="),
    "criterion of LIL": (LIL, {"criterion": F.mse_loss, "divergence": "gaussian"}, {}, "criterion="),
    "inner_optimizer": (MAML, {**SQUARED, "inner_optimizer": momentum}, SQUARED, "inner_optimizer=.*momentum"),
    "adapt": (MAML, {**SQUARED, "adapt": only_head}, SQUARED, "adapt=.*only_head"),
    "a subclass's own": (Own, {**SQUARED, "scale": torch.tanh}, SQUARED, "scale="),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_loading_without_an_argument_names_it(case, tmp_path):
    kind, made, given, message = UNSAVED[case]
    module, path = trained(tmp_path, lambda: kind(SinusoidMLP([8]), **made))
    with pytest.raises(ValueError, match=message):
        kind.load_from_checkpoint(path, network=SinusoidMLP([8]), **given)
    loaded = kind.load_from_checkpoint(path, network=SinusoidMLP([8]), **made)
    results = [pl.Trainer(**QUIET).test(each, data(), verbose=False)[0] for each in (module, loaded)]
    assert results[0] == results[1]


@pytest.mark.parametrize("missing", ["optimizer", "lr_scheduler"])
def test_what_only_training_needs_is_missed_only_in_training(missing, tmp_path):
    made = {
        "optimizer": {"optimizer": functools.partial(torch.optim.SGD, lr=0.003)},
        "lr_scheduler": {"lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)},
    }[missing]
    module, path = trained(tmp_path, lambda: MAML(SinusoidMLP([8]), **SQUARED, **made))
    loaded = MAML.load_from_checkpoint(path, network=SinusoidMLP([8]), **SQUARED)
    results = [pl.Trainer(**QUIET).test(each, data(), verbose=False)[0] for each in (module, loaded)]
    assert results[0] == results[1]
    with pytest.raises(ValueError, match=f"given {missing}="):
        pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(loaded, data())


def test_defaults_need_not_be_given(tmp_path):
    _, path = trained(tmp_path, lambda: ANIL(SinusoidMLP([8]), inner_lr=0.05, **SQUARED))
    assert ANIL.load_from_checkpoint(path, network=SinusoidMLP([8]), **SQUARED).hparams["inner_lr"] == 0.05


# -- resuming with another optimization --------------------------------------------------------------------------

ADAM = {"optimizer": functools.partial(torch.optim.Adam, lr=1e-3)}
OTHER = {
    "rate": ({"optimizer": functools.partial(torch.optim.Adam, lr=3e-3)}, r"lr is 0.001 there but 0.003 here"),
    "class": ({"optimizer": functools.partial(torch.optim.SGD, lr=1e-3)}, "the optimizer is Adam there but SGD here"),
    "betas": ({"optimizer": functools.partial(torch.optim.Adam, betas=(0.5, 0.9))}, "betas is .* there but"),
    "criterion": ({**ADAM, "criterion": F.huber_loss}, "criterion is .*mse_loss.* there but .*huber_loss"),
}


@pytest.mark.parametrize("change", OTHER)
def test_resuming_with_another_optimization_is_refused_by_name(change, tmp_path):
    _, path = trained(tmp_path, lambda: MAML(SinusoidMLP([8]), **SQUARED, **ADAM))
    options, message = OTHER[change]
    trainer = pl.Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=message):
        trainer.fit(MAML(SinusoidMLP([8]), **{**SQUARED, **options}), data(), ckpt_path=path)


def test_a_rate_that_a_scheduler_has_changed_is_no_other_rate(tmp_path):
    options = {**SQUARED, **ADAM, "lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)}
    _, path = trained(tmp_path, lambda: MAML(SinusoidMLP([8]), **options))
    trainer = pl.Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    trainer.fit(MAML(SinusoidMLP([8]), **options), data(), ckpt_path=path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25e-3)


# -- schedulers --------------------------------------------------------------------------------------------------


class Recorded(MAML):
    def on_train_start(self):
        self.rates = []

    def on_train_batch_end(self, *args):
        self.rates.append(self.optimizers().param_groups[0]["lr"])


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=13)


def cyclic(optimizer):
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2, step_size_up=5)


def in_sequence(optimizer):
    first = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=2)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, one_cycle(optimizer)], [2])


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)


SCHEDULERS = {
    "OneCycleLR": (one_cycle, 12),
    "CyclicLR": (cyclic, 6),
    "in a sequence": (in_sequence, 12),
    "ExponentialLR": (exponential, 4),
    "ExponentialLR, each step": ({"scheduler": exponential, "interval": "step"}, 12),
    "OneCycleLR, each epoch": ({"scheduler": one_cycle, "interval": "epoch"}, 4),
    "ReduceLROnPlateau": (plateau, 3),
    "ReduceLROnPlateau of another metric": ({"scheduler": plateau, "monitor": "val/loss_step_0"}, 3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_stepped_when_they_are_made_for(name):
    scheduler, rates = SCHEDULERS[name]
    module = Recorded(SinusoidMLP([8]), **SQUARED, lr_scheduler=scheduler)
    pl.Trainer(max_epochs=3, enable_checkpointing=False, **QUIET).fit(module, data())
    assert len(module.rates) == 12
    assert len({round(rate, 12) for rate in module.rates}) == rates


def test_a_plateau_without_validation_is_one_of_the_training_loss():
    module = Recorded(SinusoidMLP([8]), **SQUARED, lr_scheduler=plateau)
    loader = data()
    loader.setup("fit")
    pl.Trainer(max_epochs=3, enable_checkpointing=False, **QUIET).fit(module, loader.train_dataloader())
    assert len(set(module.rates)) == 3


@pytest.mark.parametrize("wrong", [{"interval": "step"}, {"scheduler": plateau, "watch": "x"}, 3, "OneCycleLR"])
def test_what_is_no_scheduler_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="lr_scheduler"):
        MAML(SinusoidMLP([8]), lr_scheduler=wrong)


@pytest.mark.parametrize("kind", [MAML, FOMAML, ERM])
def test_the_rate_finder_of_lightning_finds_a_rate_that_is_used(kind, tmp_path):
    from pytorch_lightning.tuner import Tuner

    module = kind(SinusoidMLP([8]), **SQUARED, optimizer=torch.optim.SGD)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)
    found = Tuner(trainer).lr_find(
        module, datamodule=data(iterations_per_epoch=40), num_training=30, early_stop_threshold=None
    )
    assert module.learning_rate == found.suggestion()
    assert module.configure_optimizers().param_groups[0]["lr"] == found.suggestion()


# -- subclasses and configurations at the command line -----------------------------------------------------------

MODULE = """
from torch import nn
from lightning_gp import {base}
class Mine({base}):
    def __init__(self, network{annotation}, weight=0.1, inner_steps=2, **kwargs):
        super().__init__(network, {steps}**kwargs)
        self.weight = weight
"""
CONFIG = """
model:
  class_path: {name}.Mine
  init_args:
    network: lightning_gp.networks.SinusoidMLP
    criterion: torch.nn.functional.mse_loss
    lr_scheduler: {{class_path: torch.optim.lr_scheduler.StepLR, init_args: {{step_size: 1}}}}
data:
  class_path: lightning_gp.datamodules.SinusoidDataModule
  init_args: {{iterations_per_epoch: 2, val_episodes: 2, environments_per_batch: 2}}
trainer: {{max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.parametrize("annotation", ["", ": nn.Module"])
@pytest.mark.parametrize("base", ["MAML", "ERM", "IRMv1"])
def test_a_subclass_works_from_a_configuration(folder, base, annotation):
    name = f"mine_{base.lower()}_{len(annotation)}"
    steps = "inner_steps=inner_steps, " if base == "MAML" else ""
    (folder / f"{name}.py").write_text(MODULE.format(base=base, annotation=annotation, steps=steps))
    (folder / "run.yaml").write_text(CONFIG.format(name=name))
    assert main(["fit", "--config", "run.yaml"]) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.encode("utf-16"), "not encoded in UTF-8"),
        (lambda text: text.encode("utf-16-le"), "not encoded in UTF-8"),
        (lambda text: text.replace("  class_path", "\tclass_path").encode(), "line 3, is indented with a tab"),
        (lambda text: text.replace("mine", "ärger").encode("latin1"), "not encoded in UTF-8"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "tabs", "latin-1"],
)
def test_a_configuration_that_cannot_be_read_gets_one_line(folder, capsys, spoil, message):
    (folder / "run.yaml").write_bytes(spoil(CONFIG.format(name="mine")))
    assert main(["fit", "--config", "run.yaml"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_a_configuration_is_whole_and_over_nobody_elses(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    assert save_beside(path, "a: 1\n") == path
    assert save_beside(path, "a: 1\n") == path
    assert capsys.readouterr().err == ""
    assert save_beside(path, "a: 2\n") == tmp_path / "config_1.yaml"
    assert "another run and stays" in capsys.readouterr().err
    assert path.read_text() == "a: 1\n"
    assert save_beside(path, "a: 2\n") == tmp_path / "config_1.yaml"
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "config_1.yaml"]


# -- checkpoints from an address ----------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_a_checkpoint_from_an_address_runs_no_code(folder):
    (folder / "served").mkdir()
    torch.save({"state_dict": {}, "epoch": 1, "x": Malicious()}, folder / "served" / "bad.ckpt")
    torch.save({"state_dict": {}, "epoch": 1}, folder / "served" / "good.ckpt")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "served"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for weights_only in (None, True):
            with pytest.raises(ValueError, match="without running code"):
                WholeCheckpoints().load_checkpoint(f"{address}/bad.ckpt", weights_only=weights_only)
        assert WholeCheckpoints().load_checkpoint(f"{address}/good.ckpt") == {"state_dict": {}, "epoch": 1}
        server.shutdown()
    assert not (folder / "was-here").exists()
