"""Gradients, noise, curvature and the edge of a digit classifier over one run, in one picture.

    python examples/watch_a_run.py [folder of MNIST] [folder of the picture]

Gradient descent on 1,000 digits at a fixed rate: curvature grows until the rate is at the edge, and stays there.
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

PANELS = {
    "loss and gradient": ["train/loss", "gradients/norm"],
    "noise scale: useful size of a batch": ["gradients/noise_scale"],
    "eigenvalues of the Hessian": ["curvature/eigenvalue_1", "curvature/eigenvalue_2"],
    "rate in use / critical rate": ["learning_rates/edge"],
}


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(784, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 10)]
        self.net = nn.Sequential(nn.Flatten(), *layers)

    def training_step(self, batch):
        self.log("train/loss", loss := 10 * nn.functional.mse_loss(self.net(batch[0]), torch.eye(10)[batch[1]]))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.08)


if __name__ == "__main__":
    mnist, folder = (*sys.argv[1:3], *("data", ".")[len(sys.argv[1:3]) :])
    pl.seed_everything(0)
    digits = datasets.MNIST(mnist, download=True, transform=transforms.ToTensor())
    every, seen = {"every_n_epochs": 5}, []
    watch = [gp.GradientNorm(**every), gp.GradientNoise(parts=8, **every), gp.HessianEigenvalues(k=2, **every)]
    keep = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: seen.append(dict(trainer.callback_metrics))
    )
    trainer = pl.Trainer(max_epochs=500, callbacks=[*watch, gp.LearningRateBounds(**every), keep], log_every_n_steps=1)
    trainer.fit(Classifier(), DataLoader(Subset(digits, range(1000)), batch_size=1000))
    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, 4), PANELS.items(), strict=True):
        for key in keys:
            axes.plot(range(5, len(seen) + 1, 5), [float(row[key]) for row in seen[4::5]], label=key)
        axes.set(title=title, xlabel="epoch", yscale="linear" if "edge" in key else "log")
        axes.legend(fontsize=7)
    figure.savefig(Path(folder) / "watch_a_run.png", dpi=120)
