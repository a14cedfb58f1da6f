"""Trains modules on two gloo processes with sharded layers (FSDP2), or on one as they are."""

import os

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gp.callbacks import (
    CosineSimilarity,
    CriticalLearningRate,
    GradientNoise,
    GradientNorm,
    HessianEigenvalues,
    PhaseAmplitudeConsistency,
    UpdateStatistics,
)
from lightning_gp.callbacks.shards import reshard

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 6, generator=GENERATOR, dtype=torch.float64), torch.randint(0, 3, (24,), generator=GENERATOR)


def shard(module, *layers):
    """Each of these layers, if a strategy has set up a mesh; what is left goes to the last."""
    from torch.distributed.fsdp import fully_shard

    for layer in layers if module._device_mesh is not None else ():
        fully_shard(layer, mesh=module.device_mesh["data_parallel"])


class Classifier(pl.LightningModule):
    """Sizes that two does not divide, and a last layer of the root's group, which stays gathered after a forward pass.

    A step clips a weight, counts in a buffer and writes a list.
    """

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        self.register_buffer("steps", torch.zeros(()))
        self.seen = []

    def configure_model(self):
        shard(self, self.net[0], self.net[2], self.net)

    def loss(self, batch, **options):
        return F.cross_entropy(self.net(batch[0].to(self.net[0].bias.dtype)), batch[1], **options)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.net[0].weight.clamp_(-0.3, 0.3)
        self.steps += 1
        self.seen.append(int(self.steps))
        return self.loss(batch) * (1 + 0.01 * self.steps)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def of_examples(module, batch):
    """As if each were an environment."""
    return module.loss(batch, reduction="none")


def of_gradients(**options):
    return [
        GradientNorm(groups=2, **options),
        GradientNorm(at="probe", groups=2, prefix="probe/", **options),
        GradientNorm(at="probe", probe_size=16, prefix="16/", **options),
        CosineSimilarity(**options),
        GradientNoise(groups=2, **options),  # parts of one example of each process are those of two examples of one
        UpdateStatistics(groups=2, **options),
        PhaseAmplitudeConsistency(**options),
    ]


def of_losses():
    return [kind(loss_fn=of_examples) for kind in (GradientNorm, CosineSimilarity, GradientNoise)]


def of_any(**options):
    return [*of_gradients(**options), CriticalLearningRate(tol=1e-3, **options)]


class Smooth(Classifier):
    """Without the kinks that clipping makes."""

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.loss(batch) * (1 + 0.01 * self.steps)


def of_curvature():
    return [HessianEigenvalues(products="differences")]


RUNS = {
    "differences": (Smooth, of_curvature, {}),
    "float64": (Classifier, of_any, {}),
    "accumulated": (Classifier, lambda: of_any(every_n_steps=1), {"accumulate_grad_batches": 2}),
    "float32": (lambda: Classifier(torch.float32), of_gradients, {}),
    "losses": (Classifier, of_losses, {}),
}


def loaders(processes, sizes=(8, 8)):
    rank = int(os.environ["LOCAL_RANK"]) if processes > 1 else 0
    parts = TensorDataset(X, Y), TensorDataset(-X, Y)
    return [
        DataLoader(part, sizes[rank] // processes, sampler=DistributedSampler(part, processes, rank, shuffle=False))
        for part in parts
    ]


def trainer(processes, callbacks=(), **options):
    settings = {"max_epochs": 2, "use_distributed_sampler": False, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=ModelParallelStrategy(processes, 1) if processes > 1 else "auto",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**settings, **options},
    )


def run(name, processes, measured=True, checkpoint=None):
    """Weights after a fit, what the module has noted, and what callbacks found; with a checkpoint after an epoch."""
    build, callbacks, options = RUNS[name]
    attached = callbacks() if measured else []
    data = loaders(processes)
    if checkpoint is not None:
        first = trainer(processes, callbacks(), **{**options, "max_epochs": 1})
        torch.manual_seed(0)
        first.fit(build(), *data)
        first.save_checkpoint(checkpoint)
    torch.manual_seed(0)
    module = build()
    ours = trainer(processes, attached, **options)
    ours.fit(module, *data, ckpt_path=checkpoint)
    reshard(module)
    weights = [each.full_tensor() if processes > 1 else each for each in module.parameters()]
    return {
        "weights": torch.cat([each.detach().flatten() for each in weights]),
        "seen": getattr(module, "seen", None),
        "values": {key: value for callback in attached for key, value in callback.values.items()},
    }
