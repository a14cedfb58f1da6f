from __future__ import annotations

import torch
from torch import nn

from lightning_gp import MAML
from lightning_gp.modules import chunking
from tests.cases import images, regression


def chunk_of(module, environments) -> int:
    module.pieces([environments])
    return module._chunk_size


def test_convolutions_on_the_cpu_go_one_by_one():
    problem = images(count=3)
    assert chunk_of(MAML(problem.network), problem.environments) == 1


def test_dense_networks_go_together():
    problem = regression(count=50)
    assert chunk_of(MAML(problem.network, criterion=problem.criterion), problem.environments) == 50


def test_the_memory_budget_bounds_the_chunk(monkeypatch):
    problem = regression(count=50)
    module = MAML(problem.network, criterion=problem.criterion)
    module.pieces([problem.environments])
    one = chunking.stored_bytes(
        lambda: module.environment_objectives(module.network_parameters(), first(problem.environments)).sum(),
        torch.device("cpu"),
    )
    monkeypatch.setattr(chunking, "MEMORY_BUDGET", 7 * one)
    module._chunk_size = None
    assert chunk_of(module, problem.environments) == 7


def first(environments):

    return next(environments.chunks(1))


def test_measuring_draws_no_random_numbers():
    problem = regression(count=3)
    network = nn.Sequential(problem.network, nn.Dropout(0.5)).double()
    module = MAML(network, criterion=problem.criterion)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    module.pieces([problem.environments])
    assert torch.equal(state, torch.get_rng_state())


def test_stored_bytes_counts_a_shared_tensor_once():
    a = torch.ones(100, dtype=torch.float64, requires_grad=True)
    assert chunking.stored_bytes(lambda: (a * a).sum(), torch.device("cpu")) == 800
