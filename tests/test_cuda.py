"""What only an accelerator shows: the same numbers as on the CPU, and probes that leave training alone there, too.

Run ``pytest tests/test_cuda.py`` on a machine with a GPU.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from lightning_gp import MAML
from lightning_gp._lightning import pl
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
from tests.cases import flat
from tests.module_cases import MODULES, batches, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def gradient(module, batch, device):
    module = copy.deepcopy(module).to(device)
    loss = module.training_loss([pytree.tree_map(lambda t: t if t is None else t.to(device), each) for each in batch])
    loss.backward()
    return loss.item(), flat(p.grad if p.grad is not None else torch.zeros_like(p) for p in module.trained_parameters())


@pytest.mark.parametrize("name", MODULES)
def test_loss_and_gradient_are_those_of_the_cpu(name):
    module, batch = build(name), batches(name, 1)[0]
    (expected, reference), (loss, found) = gradient(module, batch, "cpu"), gradient(module, batch, "cuda")
    assert loss == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(found.cpu(), reference, rtol=1e-8, atol=1e-12)


class Stranger(pl.LightningModule):
    """Dropout, batch norm, a memory bank of its own, and a generator."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.bank: list[torch.Tensor] = []
        self.own = torch.Generator(device="cuda").manual_seed(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.1 * torch.randn(x.shape, generator=self.own, device=x.device)
        z = self.net(x)
        self.bank.append(z.detach().mean(0))
        return F.cross_entropy(z + torch.stack(self.bank[-3:]).mean(0), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


CALLBACKS = {
    "norm": lambda: [GradientNorm(at="probe"), GradientNorm(at="step", prefix="step/")],
    "cosine": lambda: [CosineSimilarity()],
    "path": lambda: [PhaseAmplitudeConsistency()],
    "eigenvalues": lambda: [HessianEigenvalues(k=1), LearningRateBounds()],
}


def fit(make, data, callbacks):
    pl.seed_everything(0, verbose=False)
    module = make()
    trainer = pl.Trainer(max_epochs=2, accelerator="gpu", devices=1, callbacks=callbacks, **QUIET)
    given = data()
    trainer.fit(module, *(given if isinstance(given, tuple) else (given,)))
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("kind", ["stranger", "MAML"])
def test_weights_are_bitwise_the_same_with_callbacks(kind, callbacks):
    torch.use_deterministic_algorithms(False)
    generator = torch.Generator().manual_seed(0)
    examples = torch.utils.data.TensorDataset(
        torch.randn(32, 8, generator=generator), torch.randint(4, (32,), generator=generator)
    )
    make, data = {
        "stranger": (Stranger, lambda: (torch.utils.data.DataLoader(examples, 8),) * 2),
        "MAML": (
            lambda: MAML(nn.Sequential(SinusoidMLP([8]), nn.Dropout(0.1)), criterion=F.mse_loss),
            lambda: SinusoidDataModule(environments_per_batch=4, iterations_per_epoch=4, val_episodes=4),
        ),
    }[kind]
    plain, again, watched = fit(make, data, []), fit(make, data, []), fit(make, data, CALLBACKS[callbacks]())
    assert all(torch.equal(plain[name], again[name]) for name in plain)  # or the comparison says nothing
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_eigenvalues_are_those_of_the_cpu():
    from lightning_gp.functional import hessian_eigenvalues

    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 4

    def values(device):
        inputs, targets = x.to(device), y.to(device)
        weights = {"w": torch.zeros(4, 6, dtype=torch.float64, device=device)}
        return hessian_eigenvalues(lambda p: F.cross_entropy(inputs @ p["w"].T, targets), weights, 4).values.cpu()

    torch.testing.assert_close(values("cuda"), values("cpu"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("vectorize", ["auto", True, False])
def test_randomness_and_vmap_are_found_out_on_the_device(vectorize):
    x = torch.rand(3, 5, 1, device="cuda")
    batch = Environments((x, 2 * x), (x, 2 * x))
    network = nn.Sequential(SinusoidMLP([8]), nn.Dropout(0.5)).cuda()
    MAML(network, criterion=F.mse_loss, vectorize=vectorize).training_loss(batch).backward()
    with pytest.raises(ValueError, match="draws random numbers"):
        MAML(network, criterion=F.mse_loss, recompute=True, vectorize=vectorize).training_loss(batch)
