"""Pre-trains on random images for a few steps and saves all weights: run once, or as two ranks."""

from __future__ import annotations

import sys

import numpy as np
import torch

from lightning_gp import LILPretraining
from lightning_gp._lightning import pl
from lightning_gp.datamodules import FewShotDataModule
from lightning_gp.datamodules.episodes import ClassImages
from lightning_gp.networks import Conv4


class RandomImages(FewShotDataModule):
    def load_split(self, split):
        images = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        return ClassImages(images, np.full(4, 6), list("abcd"))


def fit(devices: int, accumulate: int) -> dict[str, object]:
    pl.seed_everything(0, verbose=False)
    module = LILPretraining(Conv4(3, channels=4, image_size=16), inner_lr=0.4, momentum=0.9).double()
    data = RandomImages(
        ways=3, shots=2, queries=3, environments_per_batch=4, iterations_per_epoch=4, val_episodes=4, test_episodes=4
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    weights = torch.cat([value.flatten() for name, value in module.state_dict().items() if "statistics" not in name])
    return {"weights": weights, "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save({accumulate: fit(int(sys.argv[2]), accumulate) for accumulate in (1, 2)}, sys.argv[1])
