"""Two processes give the weights, the metrics and the callbacks' numbers of one, on the same episodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.module_cases import MODULES
from tests.modules.distributed_fit import fit

SCRIPT = Path(__file__).with_name("distributed_fit.py")
COUNTS = ("products", "residual")
"""How a search went, and not what it found: differs with rounding."""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(SCRIPT.parents[2]),
        }
        command = [sys.executable, str(SCRIPT), str(folder / f"{rank}.pt"), "2"]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [rank.communicate(timeout=600)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("variant", MODULES)
def test_weights_metrics_and_callbacks_equal_those_of_one_process(two_processes, variant, accumulate):
    single = fit(variant, devices=1, accumulate=accumulate)
    for rank in two_processes:
        other = rank[variant, accumulate]
        error = (other["weights"] - single["weights"]).norm() / single["weights"].norm()
        assert error <= 1e-10
        assert other["metrics"] == pytest.approx(single["metrics"], rel=1e-6)
        assert len(single["callbacks"]) >= 4
        assert found(other) == pytest.approx(found(single), rel=1e-5)
    assert two_processes[0][variant, accumulate]["callbacks"] == two_processes[1][variant, accumulate]["callbacks"]


def found(result):
    return {key: value for key, value in result["callbacks"].items() if not any(word in key for word in COUNTS)}
