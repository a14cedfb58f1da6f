"""Every callback on what people train today: compiled, with attention kernels, checkpointed, in lower precision.

A row of ``ROWS`` is a network, and how its module and its Trainer are built. In each, training is bitwise what it is
without callbacks, and the numbers are those of a copy that is differentiated by hand, eagerly and without kernels.

Rows that need another Trainer are elsewhere: FSDP2 in ``test_sharded.py``, numbers of one process and of two in
``test_distributed_probes.py``, kernels without a double backward in ``test_differences.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_gp._lightning import pl
from lightning_gp.callbacks import (
    CosineSimilarity,
    CriticalLearningRate,
    GradientNoise,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    UpdateStatistics,
)
from lightning_gp.testing import on_processes

RATE = 0.05


class Attention(nn.Module):
    """Two heads over five tokens, by torch's kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        query, key, value = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(torch.tanh(x + self.out(mixed)).mean(1))


class Checkpointed(nn.Module):
    """Activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 6), nn.Tanh(), nn.Linear(6, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(40, 2))


class Tokens(nn.Module):
    """A model of ``transformers`` on embedded inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x).logits


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=5, max_position_embeddings=8, num_labels=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    return Tokens(transformers.BertForSequenceClassification(config))


def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(vocab_size=5, num_labels=2, pad_token_id=None, **sizes)
    model = transformers.LlamaModel(config)
    return Pooled(model)


def vit():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 4, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 2}
    return nn.Sequential(Images(), timm.create_model("vit_tiny_patch16_224", in_chans=2, **sizes))


class Images(nn.Module):
    """Of 2 channels and 4×4 pixels, made of the first numbers of an example."""

    def forward(self, x):
        return x.flatten(1)[:, :32].unflatten(1, (2, 4, 4))


class Pooled(nn.Module):
    """The mean of a language model's last states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.model(inputs_embeds=x).last_hidden_state.mean(1))


class Module(pl.LightningModule):
    """Anybody's classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class ByHand(Module):
    """Manual optimization, with one optimizer for the first weights and one for all others."""

    first = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss_by_hand(self, batch))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        weights = list(self.parameters())
        groups = [group for group in (weights[: self.first], weights[self.first :]) if group]
        return [torch.optim.SGD(group, lr=RATE) for group in groups]


class TwoByHand(ByHand):
    first = 2


def loss_by_hand(module: Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(module.network(batch[0]), batch[1])


class Row(NamedTuple):
    """A network, what is done with it, options of the Trainer, and how it is trained."""

    network: Callable[[], nn.Module]
    made: Callable[[nn.Module], nn.Module] = lambda network: network
    options: Mapping[str, Any] = MappingProxyType({})
    tolerance: float = 1e-6
    module: type[Module] = Module


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="aot_eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="aot_eager")
    return network


def by_inductor(network: nn.Module) -> nn.Module:
    return torch.compile(network)


ROWS = {
    "plain": Row(mlp),
    "torch.compile": Row(mlp, compiled),
    "module.compile()": Row(mlp, compiled_in_place),
    "attention kernel": Row(Attention),
    "attention kernel, torch.compile": Row(Attention, compiled),
    "nn.TransformerEncoder": Row(encoder),
    "checkpointed": Row(Checkpointed),
    "accumulated": Row(mlp, options={"accumulate_grad_batches": 2}),
    "bf16-mixed": Row(mlp, options={"precision": "bf16-mixed"}),
    "BERT": Row(bert),
    "ViT": Row(vit),
    "Llama": Row(llama),
    "Llama, module.compile()": Row(llama, compiled_in_place),
    "manual optimization": Row(mlp, module=ByHand),
    "two optimizers": Row(mlp, module=TwoByHand),
    "attention kernel, inductor": Row(Attention, by_inductor),
}
SLOW = {"attention kernel, inductor", "Llama, module.compile()", "ViT", "BERT", "Llama"}
"""Compiled for long, or large; BERT and Llama train in tests/integrations, too."""


def data(dtype: torch.dtype = torch.float64) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 5, 8, generator=generator, dtype=torch.float64).to(dtype)
    return DataLoader(TensorDataset(x, torch.randint(0, 2, (32,), generator=generator)), 16)


def fit(row: Row, *callbacks: pl.Callback) -> Module:
    pl.seed_everything(0, verbose=False)
    double = "precision" not in row.options
    module = row.module(row.made(row.network().double() if double else row.network()))
    loader = data(torch.float64 if double else torch.float32)
    pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **row.options,
    ).fit(module, loader, loader)  # fmt: skip
    return module


def by_hand(row: Row, module: Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient and the Hessian of the first batch's loss at the end of training, of an eager copy."""
    copy = row.network().double()
    weights = [each.detach().double() for each in module.parameters()]
    with torch.no_grad():
        for mine, trained in zip(copy.parameters(), weights, strict=True):
            mine.copy_(trained)
    x, y = next(iter(data()))
    parameters = [each for each in copy.parameters() if each.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(copy(x), y)
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        flat = torch.cat([each.reshape(-1) for each in first])
        rows = [
            torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            if each.requires_grad
            else [torch.zeros_like(parameter) for parameter in parameters]
            for each in flat
        ]
    hessian = torch.stack([torch.cat([each.reshape(-1) for each in row]) for row in rows])
    return flat.detach(), hessian


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ROWS])
def test_training_is_bitwise_the_same_and_numbers_are_right(name):
    row = ROWS[name]
    if row.made in (compiled, by_inductor) and not hasattr(torch.compiler, "set_stance"):  # torch < 2.6
        with pytest.raises(RuntimeError, match=r"no double backward.*use the uncompiled module"):
            fit(row, HessianEigenvalues())
        return
    bare = fit(row)
    own = {"loss_fn": loss_by_hand} if issubclass(row.module, ByHand) else {}
    norm, eigenvalues = GradientNorm(at="probe", **own), HessianEigenvalues(tol=1e-8, **own)
    which = 1 if row.module is TwoByHand else None
    edge = LearningRateBounds(tol=1e-6, optimizer=which, **own)
    others = [CosineSimilarity(**own), CriticalLearningRate(**own), GradientNoise(**own), UpdateStatistics()]
    module = fit(row, norm, eigenvalues, edge, *others)
    for mine, trained in zip(bare.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, trained)
    gradient, hessian = by_hand(row, module)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    tolerance = row.tolerance if "precision" not in row.options else 1e-3
    assert norm.values["gradients/norm"] == pytest.approx(float(gradient.norm()), rel=tolerance)
    for i in (1, 2):
        assert eigenvalues.values[f"curvature/eigenvalue_{i}"] == pytest.approx(float(exact[i - 1]), rel=tolerance)
    moved = sum(each.numel() for each in list(module.parameters())[: row.module.first]) if which else 0
    sharpest = float(torch.linalg.eigvalsh(hessian[moved:, moved:])[-1])  # of what its optimizer moves
    assert edge.values["learning_rates/edge"] == pytest.approx(RATE * sharpest / 2, rel=max(1e-4, tolerance))
    infinite = ("turning", "noise_scale")  # where nothing turns up, or the signal is lost in the noise
    for key, value in [pair for each in others for pair in each.values.items()]:
        assert math.isfinite(value) or (value == math.inf and any(word in key for word in infinite)), key
    assert others[2].values["gradients/variance"] > 0


def test_two_processes_train_bitwise_the_same():
    def trained(probes):
        def one(rank):
            callbacks = [GradientNorm(at="probe"), HessianEigenvalues(), LearningRateBounds(), GradientNoise()]
            row = ROWS["plain"]._replace(options={"devices": 2, "strategy": "ddp"})
            return [each.detach() for each in fit(row, *(callbacks if probes else [])).parameters()]

        return on_processes(one)

    bare, measured = trained(False), trained(True)
    for mine, other, third in zip(bare[0], measured[0], measured[1], strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(mine, third)


def test_reentrant_checkpointing_is_named():
    class Reentrant(Checkpointed):
        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)

    with pytest.raises(ValueError, match=r"reentrant activation checkpointing.*use_reentrant=False"):
        fit(Row(Reentrant), HessianEigenvalues())
