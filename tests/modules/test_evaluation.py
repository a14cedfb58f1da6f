"""Predictions equal an adaptation written by hand; several loaders are told apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gp import ANIL, BOIL, ERM, FOMAML, LIL, MAML, Environments, GradientPenalty, IRMv1, REx
from lightning_gp._lightning import Trainer
from lightning_gp.networks import SinusoidMLP

SQUARED = {"criterion": F.mse_loss}


def trainer(**options: object) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def tasks(count: int, shots: int, queries: int) -> Environments:
    generator = torch.Generator().manual_seed(shots)
    x, new = (torch.rand(count, size, 1, generator=generator, dtype=torch.float64) for size in (shots, queries))
    scale = torch.arange(1.0, count + 1, dtype=torch.float64).reshape(-1, 1, 1)
    return Environments((x, scale * x), (new, scale * new))


def net() -> nn.Module:
    torch.manual_seed(0)
    return SinusoidMLP([5, 4]).double()


def by_hand(network: nn.Module, environments: Environments, rate: float, steps: int, adapted: str) -> torch.Tensor:
    """The query outputs of one network after the other, each trained by torch's own SGD."""
    outputs = []
    for x, y, new in zip(*environments.support, environments.query[0], strict=True):
        own = copy.deepcopy(network)
        chosen = [value for name, value in own.named_parameters() if name.startswith(adapted)]
        optimizer = torch.optim.SGD(chosen, lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(own(x), y).backward()
            optimizer.step()
        outputs.append(own(new).detach())
    return torch.stack(outputs)


ADAPTED = {  # arguments, the steps that predictions take, what is adapted
    "MAML": (MAML, {"inner_lr": 0.1, "inner_steps": 2}, 2, ""),
    "MAML, more steps": (MAML, {"inner_lr": 0.1, "inner_steps": 1, "eval_inner_steps": 4}, 4, ""),
    "MAML, chunks": (MAML, {"inner_lr": 0.1, "inner_steps": 2, "vectorize": 2}, 2, ""),
    "MAML, one by one": (MAML, {"inner_lr": 0.1, "inner_steps": 2, "vectorize": False}, 2, ""),
    "MAML, learned rates": (MAML, {"inner_lr": 0.1, "inner_steps": 2, "learn_inner_lr": True}, 2, ""),
    "MAML, optimizer": (MAML, {"inner_steps": 3, "inner_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, 3, ""),
    "FOMAML": (FOMAML, {"inner_lr": 0.1, "inner_steps": 2}, 2, ""),
    "ANIL": (ANIL, {"inner_lr": 0.1, "inner_steps": 2}, 2, "head"),
    "BOIL": (BOIL, {"inner_lr": 0.1, "inner_steps": 2}, 2, "body"),
    "LIL": (LIL, {"inner_lr": 0.1, "inner_steps": 2, "divergence": "gaussian"}, 2, ""),
    "ERM": (ERM, {}, 0, ""),
    "GradientPenalty": (GradientPenalty, {}, 0, ""),
    "IRMv1": (IRMv1, {}, 0, ""),
    "REx": (REx, {}, 0, ""),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_predictions_are_those_of_a_network_adapted_by_hand(name):
    cls, options, steps, adapted = ADAPTED[name]
    network = net()
    module = cls(network, **SQUARED, **options)
    before = copy.deepcopy(module.state_dict())
    batch = tasks(5, 6, 7)
    expected = by_hand(network, batch, 0.1, steps, adapted)
    assert torch.allclose(module.predictions(batch.support, batch.query[0]), expected, rtol=1e-9, atol=1e-12)
    (outputs,) = trainer().predict(module, DataLoader([batch], batch_size=None))
    assert torch.allclose(outputs, expected, rtol=1e-9, atol=1e-12)
    assert not outputs.requires_grad
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def unlabelled(environments: Environments) -> Environments:
    x, y = environments.query
    return Environments(environments.support, (x, torch.full_like(y, float("nan"))))


BATCHES = {
    "one": (lambda: tasks(3, 4, 5), [(3, 5, 1)]),
    "a list": (lambda: [tasks(2, 4, 5), tasks(3, 6, 2)], [(2, 5, 1), (3, 2, 1)]),
    "a list of one": (lambda: [tasks(2, 4, 5)], [(2, 5, 1)]),
    "ragged": (lambda: [tasks(1, shots, 3) for shots in (2, 5, 9)], [(1, 3, 1)] * 3),
    "no query set": (lambda: Environments(tasks(2, 4, 5).support), [(2, 4, 1)]),
    "without labels": (lambda: unlabelled(tasks(2, 4, 5)), [(2, 5, 1)]),
}


@pytest.mark.parametrize("cls", [MAML, ERM])
@pytest.mark.parametrize("name", BATCHES)
def test_predict_gives_the_outputs_of_every_environment(name, cls):
    make, shapes = BATCHES[name]
    module = cls(net(), **SQUARED)
    (found,) = trainer().predict(module, DataLoader([make()], batch_size=None))
    assert isinstance(found, list) == isinstance(make(), list)
    outputs = found if isinstance(found, list) else [found]
    assert [tuple(each.shape) for each in outputs] == shapes
    assert all(bool(each.isfinite().all()) for each in outputs)


@pytest.mark.parametrize("cls", [MAML, ERM, REx])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_loaders_are_told_apart(cls, count):
    module = cls(net(), **SQUARED)
    batches = [tasks(2 + each, 4 + each, 5) for each in range(count)]
    loaders = [DataLoader([batch, batch], batch_size=None) for batch in batches]
    alone = [trainer().test(module, loader, verbose=False)[0] for loader in loaders]
    together = trainer().test(module, loaders, verbose=False)
    for index, (own, result) in enumerate(zip(alone, together, strict=True)):
        suffix = f"/dataloader_idx_{index}" if count > 1 else ""
        assert result == pytest.approx({f"{key}{suffix}": value for key, value in own.items()}, rel=1e-9)
    run = trainer(max_epochs=1)
    run.fit(module, loaders[0], loaders)
    wanted = {"val/loss" + (f"/dataloader_idx_{index}" if count > 1 else "") for index in range(count)}
    assert wanted <= set(run.callback_metrics)
