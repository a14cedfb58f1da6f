"""MAML on your own loss and your own data, no images: drug levels in the blood of patients, from five samples each.

The data are simulated: every patient absorbs and clears a dose at a pace of their own (one-compartment model). The
network predicts a mean and a standard deviation, and the loss is the Gaussian negative log-likelihood. Afterwards
``test/error_step_0`` is the error without the patient's samples, ``test/error_step_3`` with them.
"""

import sys

import numpy as np
import torch
from torch import nn

from lightning_gp import MAML
from lightning_gp._lightning import Trainer
from lightning_gp.datamodules import EpisodeDataModule, EpisodeDataset
from lightning_gp.environments import Environments


class Patients(EpisodeDataset):
    def draw(self, indices):  # patients by number: (E,) -> x (E, K, 1), the hours / 12, and y (E, K, 1), log levels
        u = self.uniforms(indices, 3 + 2 * 15)  # all randomness comes from here, so that every run sees the same
        absorbed, cleared, volume = (np.exp(3 * u[:, i, None] - 1.5) * scale for i, scale in enumerate((1, 0.2, 20)))
        absorbed = absorbed + 1.05 * cleared
        hours, noise = 0.25 + 23.75 * u[:, 3:18], 0.1 * (2 * u[:, 18:] - 1)
        level = np.exp(-cleared * hours) - np.exp(-absorbed * hours)
        y = np.log(100 / volume * absorbed / (absorbed - cleared) * level + 0.05) + noise
        x, y = (torch.from_numpy(values[..., None]).float() for values in (hours / 12 - 1, y))
        return Environments(support=(x[:, :5], y[:, :5]), query=(x[:, 5:], y[:, 5:]))


class PatientsDataModule(EpisodeDataModule):
    def make_episodes(self, split, length):
        return Patients(split, length, self.seed)


class GaussianMAML(MAML):
    def loss(self, parameters, x, y):  # of one patient: x (K, 1), y (K, 1)
        mean, log_sigma = self.predict(parameters, x).chunk(2, dim=-1)
        return (log_sigma + 0.5 * ((y - mean) * (-log_sigma).exp()) ** 2).mean()

    def measure(self, parameters, x, y):  # reported by validation and test, besides the loss
        error = (self.predict(parameters, x)[:, :1] - y).abs().mean()
        return {"loss": self.loss(parameters, x, y), "error": error}


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    data = PatientsDataModule(environments_per_batch=32, iterations_per_epoch=250)
    trainer = Trainer(max_epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 4, accelerator="cpu", logger=False)
    model = GaussianMAML(network, inner_lr=0.03, inner_steps=3)
    trainer.fit(model, data)
    trainer.test(model, data)
