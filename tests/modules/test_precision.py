"""Precisions, sharding strategies and compilation: what trains, and what is refused with its reason and a way out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, BOIL, ERM, FOMAML, LIL, MAML, GradientPenalty, IRMv1, LILPretraining, REx
from lightning_gp._lightning import pl
from lightning_gp.datamodules import ExampleEnvironments, SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.modules.checks import check_trainer
from lightning_gp.networks import Conv4, SinusoidMLP
from tests.cases import COMPILES, images

REGRESSION = {"criterion": F.mse_loss}
SECOND_ORDER = {
    "MAML": lambda: MAML(SinusoidMLP([8]), **REGRESSION),
    "ANIL": lambda: ANIL(SinusoidMLP([8]), **REGRESSION),
    "BOIL": lambda: BOIL(SinusoidMLP([8]), **REGRESSION),
    "LIL": lambda: LIL(SinusoidMLP([8]), divergence="gaussian", inner_lr=0.01, **REGRESSION),
    "LIL, first order": lambda: LIL(SinusoidMLP([8]), 0.01, first_order=True, divergence="gaussian", **REGRESSION),
    "LILPretraining": lambda: LILPretraining(Conv4(3, channels=2, image_size=16)),
    "GradientPenalty": lambda: GradientPenalty(SinusoidMLP([8]), **REGRESSION),
}
FIRST_ORDER = {
    "FOMAML": lambda: FOMAML(SinusoidMLP([8]), **REGRESSION),
    "ANIL, first order": lambda: ANIL(SinusoidMLP([8]), first_order=True, **REGRESSION),
    "LIL without terms": lambda: LIL(
        SinusoidMLP([8]), 0.01, first_order=True, phase_weight=0.0, amplitude_weight=0.0, **REGRESSION
    ),
    "LILPretraining, first order": lambda: LILPretraining(Conv4(3, channels=2, image_size=16), first_order=True),
    "ERM": lambda: ERM(SinusoidMLP([8]), **REGRESSION),
    "IRMv1": lambda: IRMv1(SinusoidMLP([8]), **REGRESSION),
    "REx": lambda: REx(SinusoidMLP([8]), **REGRESSION),
}


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def fit(module, *data, **options):
    losses = Losses()
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = pl.Trainer(accelerator="cpu", enable_model_summary=False, callbacks=[losses], **{**settings, **options})
    run.fit(module, *data)
    return losses.values


def episodes(steps):
    return SinusoidDataModule(environments_per_batch=16, iterations_per_epoch=steps, val_episodes=4)


def hospitals(steps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 3, generator=generator)
    y = x[..., :1] + 0.3 * torch.randn(2, 32, 1, generator=generator)
    return ExampleEnvironments({"a": (x[0], y[0]), "b": (x[1], 2 * y[1])}, steps_per_epoch=steps)


class OneEpisode(pl.LightningDataModule):
    def train_dataloader(self):
        (x, y), query = images().environments
        batch = Environments((x.float(), y), (query[0].float(), query[1]))
        return torch.utils.data.DataLoader([batch] * 20, batch_size=None)


@pytest.mark.parametrize("name", [*SECOND_ORDER, *FIRST_ORDER])
def test_bf16_mixed_trains(name):
    pl.seed_everything(0, verbose=False)
    module = {**SECOND_ORDER, **FIRST_ORDER}[name]()
    module.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
    if name in ("IRMv1", "REx"):
        module.network = nn.Linear(3, 1)
        data = hospitals(40)
    else:
        data = OneEpisode() if name.startswith("LILP") else episodes(40)
    losses = fit(module, data, precision="bf16-mixed")
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    for parameter in module.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()


class _Strategy:
    pass


def trainer_of(module, strategy="SingleDeviceStrategy", precision="32-true"):
    """What the checks see of a Trainer; the real ones need packages and GPUs that a test machine lacks."""
    kind = type(strategy, (_Strategy,), {})
    module._trainer = type("T", (), {"strategy": kind(), "precision": precision, "world_size": 2, "datamodule": None})()
    return module


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_sharding_is_refused_with_second_order(name, strategy):
    module = trainer_of(SECOND_ORDER[name](), strategy)
    assert module.second_order
    with pytest.raises(ValueError, match=f"{strategy} shards parameters.*broken.*'ddp'.*first-order"):
        check_trainer(module, module._trainer, None)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_sixteen_mixed_is_refused_with_second_order_before_training(name):
    module = trainer_of(SECOND_ORDER[name](), precision="16-mixed")
    with pytest.raises(
        ValueError, match=r"'16-mixed' scales the outer loss only.*underflow.*'bf16-mixed'.*first-order"
    ):
        module.setup("fit")


@pytest.mark.parametrize("options", [{"strategy": "FSDPStrategy"}, {"precision": "16-mixed"}], ids=str)
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_passes(name, options):
    module = trainer_of(FIRST_ORDER[name](), **options)
    assert not module.second_order
    check_trainer(module, module._trainer, None)


def test_a_share_of_every_environment_is_refused_where_it_would_be_taken_for_a_whole_one():
    module = trainer_of(MAML(nn.Linear(3, 1), **REGRESSION))
    module._trainer.datamodule = hospitals(1)
    with pytest.raises(ValueError, match=r"ExampleEnvironments gives each of the 2 devices a share.*MAML.*one device"):
        check_trainer(module, module._trainer, module._trainer.datamodule)
    check_trainer(ERM(nn.Linear(3, 1), **REGRESSION), module._trainer, module._trainer.datamodule)


@pytest.mark.parametrize(
    ("share", "data", "message"),
    [
        ("shares", lambda: episodes(1), "dealt='shares', but SinusoidDataModule deals 'episodes'"),
        ("episodes", lambda: hospitals(1), "dealt='episodes', but ExampleEnvironments deals 'shares'"),
    ],
)
@pytest.mark.parametrize("kind", [IRMv1, REx, GradientPenalty])
def test_data_dealt_out_otherwise_than_the_module_believes_are_refused(kind, share, data, message, monkeypatch):
    module = trainer_of(kind(nn.Linear(3, 1), dealt=share, **REGRESSION))
    module._trainer.datamodule = data()
    monkeypatch.setattr("lightning_gp.modules.named.processes", lambda: 2)
    with pytest.raises(ValueError, match=message):
        module.setup("fit")


# -- compilation ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not COMPILES, reason="torch 2.5 cannot compile the step, and says so")
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda **o: FOMAML(SinusoidMLP([8]), **o), marks=pytest.mark.slow),
        lambda **o: ANIL(SinusoidMLP([8]), learn_inner_lr=True, inner_lr_per="element", **o),
        pytest.param(lambda **o: BOIL(SinusoidMLP([8]), recompute=True, inner_steps=2, **o), marks=pytest.mark.slow),
    ],
    ids=["FOMAML", "ANIL, learned rates", "BOIL, recompute"],
)
def test_what_compiles_trains_to_the_same_weights(build):
    weights = []
    for compiled in (False, True):
        pl.seed_everything(0, verbose=False)
        module = build(compile=compiled, **REGRESSION).double()
        data = SinusoidDataModule(environments_per_batch=4, iterations_per_epoch=2, val_episodes=2, dtype="float64")
        fit(module, data, precision="64-true")
        weights.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    assert (weights[1] - weights[0]).norm() <= 1e-9 * weights[0].norm()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MAML(SinusoidMLP(), compile=True, inner_optimizer=torch.optim.Adam), "together with inner_optimizer"),
        (
            lambda: LIL(SinusoidMLP(), compile=True, divergence="gaussian", **REGRESSION),
            "LIL overrides environment_terms",
        ),
        (lambda: LILPretraining(Conv4(3), compile=True), "LILPretraining overrides environment_terms"),
    ],
    ids=["inner_optimizer", "LIL", "LILPretraining"],
)
def test_what_does_not_compile_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", [MAML, FOMAML, GradientPenalty])
def test_a_compiled_module_is_refused_where_the_step_computes_gradients(kind):
    with pytest.raises(ValueError, match=f"cannot compile the training step of {kind.__name__}.*compile=True"):
        fit(torch.compile(kind(SinusoidMLP([8]), **REGRESSION)), episodes(1))


def test_a_step_that_torch_cannot_compile_says_what_to_do():
    def branching(predictions, targets):
        torch._dynamo.graph_break()
        return F.mse_loss(predictions, targets)

    module = MAML(SinusoidMLP([8]), compile=True, criterion=branching)
    module._meta_gradient = torch.compile(meta_gradient, fullgraph=True)
    with pytest.raises(RuntimeError, match=r"could not compile the step of MAML.*leave compile False"):
        fit(module, episodes(1))
