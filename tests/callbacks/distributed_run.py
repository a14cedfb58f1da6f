"""Trains on one or two gloo processes with every callback and gives back what they logged."""

import os

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gp import ERM
from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from tests import module_cases
from tests.callbacks.callback_cases import Classifier, build, sinusoid_maml


class WithoutStatistics(Classifier):
    """Batch statistics differ between shares of a batch, so this one has no batch normalisation."""

    def __init__(self):
        super().__init__(dropout=0.0, dtype=torch.float64)
        self.network[1] = torch.nn.Identity()


class Supports(ERM):
    """Environments without a query set."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Environments(batch.support)


def main(processes, folder):
    shared = {"environments_per_batch": 6, "iterations_per_epoch": 2, "val_episodes": 2, "dtype": "float64"}
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (2, 16), generator=generator)
    examples, other = TensorDataset(x[0], y[0]), (x[1], y[1])
    # Lightning would shuffle the training examples of two processes, but not those of one.
    share = DistributedSampler(examples, processes, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    plain = [DataLoader(part, 8 // processes, sampler=share) for part in (examples, TensorDataset(*other))]
    torch.manual_seed(0)
    supports = Supports(SinusoidMLP([8]), criterion=torch.nn.functional.mse_loss)
    runs = {
        "maml": (sinusoid_maml(inner_steps=2), (SinusoidDataModule(5, 5, **shared),)),
        "supports": (supports, (SinusoidDataModule(5, 5, **shared),)),
        "plain": (build(WithoutStatistics), plain),
    }
    logged = {}
    for name, (module, data) in runs.items():
        callbacks = [
            GradientNorm(probe_size=8),
            GradientNorm(at="probe", probe_size=8, prefix="probe/"),
            CosineSimilarity(probe_size=8),
            PhaseAmplitudeConsistency(probe_size=8),
            HessianEigenvalues(probe_size=8, tol=1e-8),
            LearningRateBounds(probe_size=8, tol=1e-8),
            GradientNorm(at="probe", probe_size=1000, every_n_epochs=50, prefix="never/"),
        ]
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            devices=processes,
            strategy="ddp" if processes > 1 else "auto",
            precision="64-true",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module.double(), *data)
        logged[name] = {key: value for callback in callbacks for key, value in callback.values.items()}
        ranks = callbacks[1].state_dict()["batch"]["ranks"]
        assert len(ranks) == processes
        unfinished = callbacks[-1].state_dict()["batch"]
        assert len(unfinished["ranks"]) == processes
        assert all(unfinished["ranks"])
        assert "seen" in unfinished
        trainer.save_checkpoint(f"{folder}/{name}.ckpt")
        assert trainer.callback_metrics.keys() >= logged[name].keys()
        rank = trainer.global_rank
    # Five episodes, so that one of two processes has more of them; and environments of which each has a share.
    numbers = torch.randn(5, 4, 1, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    episodes = [Environments((a, b), (c, d)) for a, b, c, d in numbers]
    uneven = DataLoader(episodes[rank::processes], batch_size=None)
    probes = [GradientNorm, CosineSimilarity, HessianEigenvalues]
    logged["test"] = tested(processes, sinusoid_maml(), uneven, probes)
    shares = module_cases.shared(test=module_cases.shared().environments("train"))
    probes = [GradientNorm, HessianEigenvalues]
    logged["test of shares"] = tested(processes, module_cases.build("IRMv1, shares"), shares, probes)
    return logged


def tested(processes, module, data, classes):
    """What probes log in ``trainer.test``."""
    callbacks = [cls(episodes=100, **({"tol": 1e-8} if cls is HessianEigenvalues else {})) for cls in classes]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.test(module.double(), data, verbose=False)
    values = {key: value for callback in callbacks for key, value in callback.evaluated.items()}
    assert trainer.callback_metrics.keys() >= values.keys()
    # How far and how fast a search comes depends on rounding.
    return {key: value for key, value in values.items() if "residual" not in key and "products" not in key}
