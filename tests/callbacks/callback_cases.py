"""Modules that know nothing of the callbacks, and a Trainer that runs in a second."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from lightning_gp import MAML
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP


class Classifier(pl.LightningModule):
    """Everything that a careless probe disturbs: dropout, running statistics, a metric, a list, a counter."""

    def __init__(self, dropout=0.5, dtype=torch.float32):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
        ).to(dtype)
        self.accuracy = Accuracy("multiclass", num_classes=3)
        self.outputs, self.steps = [], 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log_dict({"train/loss": loss})
        self.outputs.append(loss.detach())
        self.steps += 1
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Manual(pl.LightningModule):
    """Two optimizers, so manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.b(F.dropout(self.a(x).tanh())), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.Adam(self.b.parameters(), lr=0.01)]


def manual_loss(module, batch):
    return F.cross_entropy(module.b(F.dropout(module.a(batch[0]).tanh())), batch[1])


def examples(count=32, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=dtype)
    return x, torch.randint(0, 3, (count,), generator=generator)


def loaders(batch_size=8, count=32, dtype=torch.float32, shuffle=True):
    train, val = TensorDataset(*examples(count, 0, dtype)), TensorDataset(*examples(16, 1, dtype))
    return DataLoader(train, batch_size, shuffle=shuffle), DataLoader(val, batch_size)


def trainer(tmp_path, callbacks=(), **options):
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return pl.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**settings, **options})


def fit(tmp_path, module, data, callbacks=(), **options):
    """Trains from the same random state and returns the Trainer."""
    pl.seed_everything(1, verbose=False)
    ours = trainer(tmp_path, callbacks, **options)
    ours.fit(module, *(data if isinstance(data, tuple) else (data,)))
    return ours


def sinusoid_data(environments=6, **options):
    return SinusoidDataModule(
        shots=5, queries=5, environments_per_batch=environments, iterations_per_epoch=3, val_episodes=2, **options
    )


def sinusoid_maml(**options):
    torch.manual_seed(0)
    return MAML(SinusoidMLP([8]), **{"inner_lr": 0.01, "criterion": F.mse_loss, **options})


def build(cls, *args, **kwargs):
    torch.manual_seed(0)
    return cls(*args, **kwargs)


def assert_same_training(left, right):
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
