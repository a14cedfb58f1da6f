"""Trains every variant for a few steps on sinusoids and saves weights and metrics: run once, or as two ranks."""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F

from lightning_gp import ANIL, BOIL, ERM, FOMAML, LIL, MAML
from lightning_gp._lightning import pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP

VARIANTS = {
    "MAML": (MAML, {"inner_lr": 0.01, "inner_steps": 2}),
    "MAML, learned rates": (MAML, {"inner_lr": 0.01, "learn_inner_lr": True}),
    "MAML, chunks": (MAML, {"inner_lr": 0.01, "vectorize": 3}),
    "MAML, recomputed": (MAML, {"inner_lr": 0.01, "recompute": True}),
    "FOMAML": (FOMAML, {"inner_lr": 0.01}),
    "ANIL": (ANIL, {"inner_lr": 0.01}),
    "BOIL": (BOIL, {"inner_lr": 0.01}),
    "LIL": (LIL, {"inner_lr": 0.01, "inner_steps": 2, "divergence": "gaussian", "amplitude_weight": 0.1}),
    "ERM": (ERM, {}),
}


def fit(name: str, devices: int, accumulate: int) -> dict[str, object]:
    cls, options = VARIANTS[name]
    pl.seed_everything(0, verbose=False)
    module = cls(SinusoidMLP(), criterion=F.mse_loss, **options)
    # float32 weights are made first and then widened, so that every run starts from the same numbers
    module = module.double()
    data = SinusoidDataModule(
        environments_per_batch=8, iterations_per_epoch=6, val_episodes=16, test_episodes=16, dtype="float64"
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return {"weights": weights, "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k}}


def main(path: str, devices: int) -> None:
    torch.set_num_threads(1)
    results = {(name, a): fit(name, devices, a) for name in VARIANTS for a in (1, 2)}
    torch.save(results, path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
