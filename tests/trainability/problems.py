"""A tiny map in float64, built by functions that other processes can import; run as a script, it computes the map."""

import sys

import torch
from torch.nn import functional as F

from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.modules import MAML
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import TrainabilityMap


def module(seed):
    return MAML(SinusoidMLP(hidden=(6,)).double(), criterion=F.mse_loss)


def data(seed):
    return SinusoidDataModule(environments_per_batch=4, iterations_per_epoch=7, seed=seed, dtype="float64")


def tiny_map(**changes):
    settings = {"inner_lrs": [0.001, 0.01, 0.1], "outer_lrs": [0.01, 0.1, 50.0], "iterations": 20, "seeds": (0, 1)}
    return TrainabilityMap(module, data, **{**settings, **changes})


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_map().run(sys.argv[1], workers=int(sys.argv[2]), progress=False)
