"""Bad input is refused before training starts, with the value, what is allowed, and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, ERM, MAML
from lightning_gp._lightning import pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.modules.checks import check_trainer
from lightning_gp.networks import Conv4, SinusoidMLP
from tests.cases import images

BATCH_NORM = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


class OwnObjective(MAML):
    def environment_objectives(self, parameters, environments):
        return super().environment_objectives(parameters, environments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: MAML(SinusoidMLP(), inner_lr=-0.1),
            r"inner_lr=-0.1 must be a finite number of at least 0; or a mapping",
        ),
        (lambda: MAML(SinusoidMLP(), inner_lr=float("nan")), "inner_lr=nan must be a finite"),
        (lambda: MAML(SinusoidMLP(), inner_lr={"head": 0.1}), "gives no rate for .*body.0.weight"),
        (lambda: MAML(SinusoidMLP(), inner_lr={"": 0.1, "tail": 1.0}), "inner_lr names .*no adapted parameter"),
        (lambda: ANIL(SinusoidMLP(), inner_lr={"body": 0.1}), "inner_lr names 'body'.*head.weight"),
        (lambda: MAML(SinusoidMLP(), inner_steps=0), "inner_steps=0 must be .*at least 1; use ERM"),
        (lambda: MAML(SinusoidMLP(), eval_inner_steps=-1), "eval_inner_steps=-1"),
        (lambda: MAML(SinusoidMLP(), inner_steps=1.5), "inner_steps=1.5 must be a whole number"),
        (lambda: MAML(SinusoidMLP(), adapt="tail"), "adapt='tail' picks none.*head.weight"),
        (lambda: ANIL(nn.Linear(1, 1)), "needs a network with a submodule named 'head'"),
        (lambda: MAML(SinusoidMLP(), vectorize=0), "vectorize=0; allowed are 'auto'"),
        (lambda: MAML(SinusoidMLP(), vectorize="yes"), "vectorize='yes'; allowed are"),
        (lambda: MAML(SinusoidMLP(), learn_inner_lr=True, inner_lr_per="layer"), "inner_lr_per='layer' is unknown"),
        (lambda: MAML(BATCH_NORM), "running statistics in 1: .*track_running_stats=False.*use_batch_statistics"),
        (lambda: ERM(SinusoidMLP().requires_grad_(False)), "no parameter that requires a gradient"),
        (lambda: ERM(nn.ReLU()), "no parameter that requires a gradient"),
        (lambda: OwnObjective(SinusoidMLP(), compile=True), "OwnObjective overrides environment_objectives"),
        (
            lambda: MAML(SinusoidMLP(), recompute=True, inner_optimizer=torch.optim.Adam),
            "leave both False together with inner_optimizer",
        ),
    ],
)
def test_arguments(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_a_network_that_is_no_module():
    with pytest.raises(TypeError, match=r"network must be a torch.nn.Module, got function"):
        MAML(lambda x: x)


def fit(module, environments, **options):
    options = {"max_steps": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **options}
    run = pl.Trainer(accelerator="cpu", enable_model_summary=False, **options)
    run.fit(module, torch.utils.data.DataLoader([environments], batch_size=None))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.DataParallel(nn.Linear(1, 1)), "network is a DataParallel.*give the network that is inside"),
        (torch.jit.script(nn.Linear(1, 1)), "network is a RecursiveScriptModule"),
        (nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1)), "shape of 0.weight, 0.bias yet.*call it once"),
    ],
)
def test_networks_that_cannot_take_other_parameters(network, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MAML(network)


def test_inputs_of_another_precision_are_named():
    x = torch.zeros(2, 3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"inputs are of torch.float64.*torch.float32.*x.float\(\)"):
        MAML(nn.Linear(1, 1), criterion=F.mse_loss).training_loss(Environments((x, x), (x, x)))


@pytest.mark.parametrize("ways", [2, 1])
def test_a_network_with_too_few_outputs_is_refused_before_the_first_step(ways):
    network = Conv4(ways=ways, channels=4, image_size=16).double()
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(ValueError, match=rf"{ways} outputs but the data has labels up to 2.*Conv4\(ways"):
        fit(MAML(network), images().environments, precision="64-true")
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_with_too_many_outputs_is_refused_where_the_ways_are_known():
    class ThreeWays(pl.LightningDataModule):
        ways = 3

        def train_dataloader(self):
            return torch.utils.data.DataLoader([images().environments], batch_size=None)

    module = MAML(Conv4(ways=7, channels=4, image_size=16).double())
    run = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"7 outputs but the data has 3 ways.*Build the network with 3 outputs"):
        run.fit(module, ThreeWays())


def test_targets_that_would_broadcast_are_refused():
    x = torch.zeros(2, 10, 1)
    with pytest.raises(ValueError, match=r"output has shape \(10, 1\) but the targets have \(10,\)"):
        fit(MAML(SinusoidMLP(), criterion=F.mse_loss), Environments((x, x[..., 0]), (x, x[..., 0])))


def test_a_batch_that_is_no_environments():
    with pytest.raises(TypeError, match=r"batch of type Environments.*got Tensor"):
        fit(MAML(SinusoidMLP(), criterion=F.mse_loss), torch.zeros(2, 10, 1))


class _Strategy:
    pass


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_strategies_are_refused_for_second_order(name):
    module = MAML(SinusoidMLP())
    module._trainer = type(
        "T", (), {"strategy": type(name, (_Strategy,), {})(), "precision": "32-true", "world_size": 1}
    )()
    with pytest.raises(ValueError, match=f"{name} shards.*strategy='ddp'.*first_order=True"):
        check_trainer(module, module._trainer, None)
    check_trainer(MAML(SinusoidMLP(), first_order=True), module._trainer, None)


def test_sixteen_mixed_is_refused_for_second_order():
    module = MAML(SinusoidMLP())
    module._trainer = type("T", (), {"strategy": _Strategy(), "precision": "16-mixed", "world_size": 1})()
    with pytest.raises(ValueError, match=r"16-mixed.*bf16-mixed"):
        check_trainer(module, module._trainer, None)


def test_zero_environments_in_a_data_module():
    with pytest.raises(ValueError, match="environments_per_batch=0"):
        SinusoidDataModule(environments_per_batch=0)
