"""Two processes give the student, predictor, teacher and monitor of one, on the same episodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modules.lil_pretraining_fit import fit

SCRIPT = Path(__file__).with_name("lil_pretraining_fit.py")


def test_weights_and_metrics_equal_those_of_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / f"{rank}.pt"), "2"],
            env={**os.environ, **shared, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for accumulate in (1, 2):
        single = fit(devices=1, accumulate=accumulate)
        for rank in results:
            other = rank[accumulate]
            assert (other["weights"] - single["weights"]).norm() / single["weights"].norm() <= 1e-10
            assert other["metrics"] == pytest.approx(single["metrics"], rel=1e-6)
