"""Trains a module for a few steps with every callback and gives back what came out: run once, or as two ranks."""

from __future__ import annotations

import warnings

import torch

from lightning_gp import FOMAML, ImplicitMAML, LILPretraining, Reptile
from lightning_gp._lightning import pl
from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from tests.module_cases import MODULES, build


def fit(name: str, devices: int, accumulate: int) -> dict[str, object]:
    cls, data = MODULES[name].module, MODULES[name].data
    module = build(name)
    callbacks = [
        GradientNorm(at="probe"),
        GradientNorm(at="step", prefix="step/"),
        CosineSimilarity(),
        PhaseAmplitudeConsistency(),
    ]
    if accumulate == 1:  # eigenvalues know nothing of it
        callbacks.append(HessianEigenvalues(tol=1e-8))
        if not module.couples_environments:  # otherwise it is measured in one process only
            callbacks.append(LearningRateBounds())
    # The loss of LILPretraining cannot be differentiated three times through batch norm; the updates of the others are
    # no gradients.
    if (
        accumulate == 1
        and cls not in (FOMAML, Reptile, ImplicitMAML, LILPretraining)
        and not module.couples_environments
    ):
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
        warnings.filterwarnings("ignore", "The (inner |outer )?learning rate")  # these rates are large
        trainer.fit(module, data())
    weights = torch.cat([value.flatten() for key, value in module.state_dict().items() if "statistics" not in key])
    return {
        "weights": weights,
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
        "callbacks": {key: value for callback in callbacks for key, value in callback.values.items()},
    }
