"""FSDP2: two processes with sharded layers measure what one measures, and train as they do without callbacks."""

import pytest
import torch

from lightning_gp.testing import on_processes
from tests.callbacks.sharded_run import RUNS, run


@pytest.fixture(scope="module")
def two_processes():
    return on_processes(lambda rank: {(name, measured): run(name, 2, measured) for name in RUNS for measured in (0, 1)})


@pytest.mark.parametrize("name", RUNS)
def test_training_is_bitwise_the_same(two_processes, name):
    for rank in two_processes:
        bare, measured = rank[name, 0], rank[name, 1]
        assert torch.equal(bare["weights"], measured["weights"])
        assert bare["seen"] == measured["seen"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_measure_what_one_does(two_processes, name):
    alone, (first, second) = run(name, 1), (rank[name, 1] for rank in two_processes)
    assert first["values"] == second["values"]
    assert len(alone["values"]) >= 3
    assert first["values"] == pytest.approx(alone["values"], rel=1e-6)
    assert float((first["weights"] - alone["weights"]).norm()) <= 1e-6 * float(alone["weights"].norm())
