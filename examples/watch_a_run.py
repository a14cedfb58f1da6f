"""Gradients, noise, curvature and the edge of a digit classifier over one run, in one picture.

    python examples/watch_a_run.py [folder of MNIST] [folder of the picture]

Full batches of 1,000 digits, gradient descent at a fixed rate: curvature grows until the rate is at the edge, and
stays there.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from lightning_gp import callbacks as gp


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        hidden = [nn.Linear(784, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh()]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(60, 10))

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.net(batch[0]), nn.functional.one_hot(batch[1], 10).float()) * 10
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.08)


class Curves(pl.Callback):
    """Keeps every value that is there at the end of every fifth epoch."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch % 5 == 4:
            self.rows.append({"epoch": trainer.current_epoch + 1, **trainer.callback_metrics})


def draw(rows, path):
    panels = {
        "gradient and loss": ["gradients/norm", "train/loss"],
        "examples per batch that are useful": ["gradients/noise_scale"],
        "curvature": ["curvature/eigenvalue_1", "curvature/eigenvalue_2"],
        "rate in use / critical rate": ["learning_rates/edge"],
    }
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        for key in keys:
            axes.plot([row["epoch"] for row in rows], [float(row[key]) for row in rows], label=key)
        axes.set(title=title, xlabel="epoch", yscale="linear" if "edge" in keys[0] else "log")
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7)
    figure.axes[-1].axhline(1, color="gray", linestyle="--", linewidth=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    mnist, folder = (*sys.argv[1:3], *("data", "watched")[len(sys.argv[1:3]) :])
    pl.seed_everything(0)
    digits = datasets.MNIST(mnist, download=True, transform=transforms.ToTensor())
    batches = DataLoader(Subset(digits, range(1000)), batch_size=1000)
    watch = [gp.GradientNorm(), gp.GradientNoise(parts=8), gp.HessianEigenvalues(k=2), gp.LearningRateBounds()]
    curves = Curves()
    trainer = pl.Trainer(max_epochs=500, accelerator="cpu", log_every_n_steps=1, callbacks=[*watch, curves])
    for probe in watch:
        probe.every_n_epochs = 5
    trainer.fit(Classifier(), batches)
    draw(curves.rows, Path(folder) / "watch_a_run.png")
