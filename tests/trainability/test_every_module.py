"""A cell of a map trains every algorithm that has a rate as a loop written here does."""

from __future__ import annotations

import pytest
import torch

from lightning_gp.contracts import Varies
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.stream import BatchStream
from tests.module_cases import MODULES, build

ITERATIONS, BETA = 6, 0.001
FIXED = {"anneal_steps", "multi_step_loss"}
"""Options that change the objective on the way, with which no map is drawn."""

SINGLE = {"LILPretraining"}
"""Trained on images, which are of single precision."""


def cases():
    quick = {"Reptile", "ImplicitMAML", "MetaSGD", "REx", "IGA", "Fishr", "IBIRM", "Fish, shares of mini-batches"}
    assert quick <= set(MODULES)
    return [
        pytest.param(name, marks=[] if name in quick else pytest.mark.slow)
        for name in MODULES
        if isinstance(build(name), Varies)
    ]


def module_of(name):
    kept = {key: value for key, value in MODULES[name].options.items() if key not in FIXED}
    torch.manual_seed(0)
    module = MODULES[name].module(MODULES[name].network(), **kept)
    return module if name in SINGLE else module.double()


@pytest.mark.parametrize("name", cases())
def test_a_cell_is_gradient_descent_on_the_training_loss(name):
    alpha = 0.003
    train = CellTrainer(module_of(name), BatchStream(MODULES[name].data()), divergence=1e9)
    train(0.05, BETA, ITERATIONS)  # other rates before must leave nothing behind
    found = train(alpha, BETA, ITERATIONS)
    module = module_of(name).train()
    module.rate().set(alpha)
    parameters = module.trained_parameters()
    losses = []
    for batch in BatchStream(MODULES[name].data()).first(ITERATIONS + 1):
        loss = module.training_loss(batch)
        losses.append(loss.item())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= BETA * gradient
    assert losses[0] != losses[-1]
    tolerance = 1e-4 if name in SINGLE else 1e-9
    assert found.first_loss == pytest.approx(losses[0], rel=tolerance)
    assert found.loss == pytest.approx(losses[-1], rel=tolerance)
