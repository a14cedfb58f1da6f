"""Trains every module for a few steps with every callback and saves what came out: run once, or as two ranks."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, BOIL, ERM, FOMAML, LIL, MAML, GradientPenalty, IRMv1, LILPretraining, REx
from lightning_gp._lightning import pl
from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from lightning_gp.datamodules import FewShotDataModule, SinusoidDataModule
from lightning_gp.datamodules.episodes import ClassImages
from lightning_gp.datamodules.example_environments import ExampleEnvironments
from lightning_gp.networks import Conv4, SinusoidMLP


class RandomImages(FewShotDataModule):
    def load_split(self, split):
        images = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        return ClassImages(images, np.full(4, 6), list("abcd"))


def episodes():
    """Each process has environments of its own."""
    return SinusoidDataModule(
        environments_per_batch=8, iterations_per_epoch=4, val_episodes=16, test_episodes=16, dtype="float64"
    )


def images():
    return RandomImages(
        ways=3, shots=2, queries=3, environments_per_batch=4, iterations_per_epoch=4, val_episodes=4, test_episodes=4
    )


def shared(**options):
    """Each process has a share of every environment, and with odd sizes not half of it."""
    generator = torch.Generator().manual_seed(0)

    def environment(size):
        x = torch.randn(size, 3, dtype=torch.float64, generator=generator)
        return x, (x[:, :1] + torch.randn(size, 1, dtype=torch.float64, generator=generator) > 0).double()

    return ExampleEnvironments({name: environment(size) for name, size in (("a", 9), ("b", 7), ("c", 12))}, **options)


def full_batches():
    return shared(steps_per_epoch=4)


def mini_batches():
    return shared(batch_size=4)


def classifier():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def conv():
    return Conv4(3, channels=4, image_size=16)


RATE = {"inner_lr": 0.01}
SQUARED = {"criterion": F.mse_loss}
BINARY = {"criterion": F.binary_cross_entropy_with_logits}
OWN = {"devices_share": "environments", **SQUARED}
PENALTY = {"penalty_weight": 30.0, "anneal_steps": 2, "rescale_loss": True, "l2": 0.01}
LIL_TERMS = {**RATE, "inner_steps": 2, "divergence": "gaussian", "amplitude_weight": 0.1}

VARIANTS = {
    "MAML": (MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "inner_steps": 2}),
    "MAML, learned rates": (MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "learn_inner_lr": True}),
    "MAML, chunks": (MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "vectorize": 3}),
    "MAML, recomputed": (MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "recompute": True}),
    "FOMAML": (FOMAML, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "ANIL": (ANIL, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "BOIL": (BOIL, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "LIL": (LIL, SinusoidMLP, episodes, {**LIL_TERMS, **SQUARED}),
    "LILPretraining": (LILPretraining, conv, images, {"inner_lr": 0.4, "momentum": 0.9}),
    "ERM": (ERM, SinusoidMLP, episodes, SQUARED),
    "ERM, shares": (ERM, classifier, full_batches, BINARY),
    "ERM, shares of mini-batches": (ERM, classifier, mini_batches, BINARY),
    "GradientPenalty": (GradientPenalty, SinusoidMLP, episodes, {**OWN, "coefficient": 0.01, "sign": -1}),
    "GradientPenalty, shares": (GradientPenalty, classifier, full_batches, {**BINARY, "coefficient": 0.5}),
    "GradientPenalty, shares of mini-batches": (GradientPenalty, classifier, mini_batches, BINARY),
    "IRMv1": (IRMv1, SinusoidMLP, episodes, {**OWN, **PENALTY}),
    "IRMv1, shares": (IRMv1, classifier, full_batches, {**BINARY, **PENALTY}),
    "IRMv1, shares of mini-batches": (IRMv1, classifier, mini_batches, {**BINARY, **PENALTY}),
    "REx": (REx, SinusoidMLP, episodes, {**OWN, **PENALTY}),
    "REx, shares": (REx, classifier, full_batches, {**BINARY, **PENALTY}),
    "REx, shares of mini-batches": (REx, classifier, mini_batches, {**BINARY, **PENALTY}),
}


def fit(name: str, devices: int, accumulate: int) -> dict[str, object]:
    cls, network, data, options = VARIANTS[name]
    pl.seed_everything(0, verbose=False)
    # float32 weights are made first and then widened, so that every run starts from the same numbers
    module = cls(network(), **options).double()
    callbacks = [
        GradientNorm(at="probe"),
        GradientNorm(at="step", prefix="step/"),
        CosineSimilarity(),
        PhaseAmplitudeConsistency(),
    ]
    if accumulate == 1:  # eigenvalues know nothing of it
        callbacks += [HessianEigenvalues(tol=1e-8), LearningRateBounds()]
    # The loss of LILPretraining cannot be differentiated three times through batch norm; REx couples environments.
    if accumulate == 1 and cls not in (LILPretraining, REx):
        callbacks.append(HessianEigenvalues(tol=1e-8, objective="training", prefix="training/"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The (inner|outer) learning rate")  # these rates are large
        trainer.fit(module, data())
    weights = torch.cat([value.flatten() for key, value in module.state_dict().items() if "statistics" not in key])
    return {
        "weights": weights,
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
        "callbacks": {key: value for callback in callbacks for key, value in callback.values.items()},
    }


def main(path: str, devices: int) -> None:
    torch.set_num_threads(1)
    torch.save({(name, a): fit(name, devices, a) for name in VARIANTS for a in (1, 2)}, path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
