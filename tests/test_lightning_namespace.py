"""Everything under ``lightning.pytorch`` in place of ``pytorch_lightning``, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gp import _lightning

SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
import lightning.pytorch as pl

from lightning_gp import ERM, LIL, MAML, IRMv1, LILPretraining, REx
from lightning_gp import _lightning, callbacks, cli, datamodules
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.networks import Conv4, SinusoidMLP

assert _lightning.NAMESPACE == "lightning.pytorch" and issubclass(MAML, pl.LightningModule)
assert issubclass(datamodules.SinusoidDataModule, pl.LightningDataModule)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, *data):
    measured = [callbacks.GradientNorm(), callbacks.CosineSimilarity(), callbacks.PhaseAmplitudeConsistency()]
    measured += [callbacks.HessianEigenvalues(), callbacks.LearningRateBounds()]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=pl.loggers.CSVLogger("logs"), callbacks=measured,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )
    trainer.fit(module, *data)
    assert {"gradients/norm", "gradients/cosine", "curvature/eigenvalue_1"} <= trainer.callback_metrics.keys()
    return trainer


size = {"environments_per_batch": 4, "iterations_per_epoch": 2, "val_episodes": 4, "test_episodes": 4}
for algorithm in (MAML, LIL, ERM):
    options = {"divergence": "gaussian"} if algorithm is LIL else {}
    module = algorithm(SinusoidMLP([4]), criterion=F.mse_loss, **options)
    fit(module, datamodules.SinusoidDataModule(**size)).test(module, datamodules.SinusoidDataModule(**size))

x, y = torch.randn(8, 3), torch.randn(8, 1)
hospitals = {"a": (x, y), "b": (y + x, 2 * y)}
for algorithm in (IRMv1, REx):
    fit(algorithm(nn.Linear(3, 1), criterion=F.mse_loss), ExampleEnvironments(hospitals))

images, labels = torch.rand(60, 1, 16, 16), torch.arange(60) % 30
few = datamodules.FewShotDataModule.from_dataset(
    torch.utils.data.TensorDataset(images, labels), ways=3, shots=1, queries=1, **size
)
fit(LILPretraining(Conv4(3, channels=2, image_size=16)), few)

plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
fit(Classifier(), plain, plain)

words = ["fit", "--model=MAML", "--model.network=lightning_gp.networks.SinusoidMLP"]
words += ["--model.criterion=torch.nn.functional.mse_loss", "--data=SinusoidDataModule"]
assert cli.main([*words, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]) == 0
"""


def test_modules_data_modules_callbacks_and_the_command_line(tmp_path):
    environment = {**os.environ, "LIGHTNING_GP_NAMESPACE": "lightning.pytorch"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("installed", "taken"), [("both", "pytorch_lightning"), ("lightning", "lightning.pytorch")])
def test_pytorch_lightning_comes_first(installed, taken, monkeypatch):
    monkeypatch.delenv("LIGHTNING_GP_NAMESPACE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if installed in ("both", name) else None)
    assert _lightning._namespace() == taken


def test_an_unknown_namespace_is_refused(monkeypatch):
    monkeypatch.setenv("LIGHTNING_GP_NAMESPACE", "lightning")
    with pytest.raises(ImportError, match="LIGHTNING_GP_NAMESPACE='lightning' is unknown; use one of pytorch_light"):
        _lightning._namespace()


def test_without_either_it_says_what_to_install(monkeypatch):
    monkeypatch.delenv("LIGHTNING_GP_NAMESPACE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pytorch-lightning"):
        _lightning._namespace()
