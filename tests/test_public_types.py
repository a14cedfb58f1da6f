"""What a type checker tells a user who imports the public names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SNIPPETS = {
    "MAML(network, inner_lr=0.1, criterion=F.mse_loss)": None,
    "FOMAML(network, adapt='head', recompute=True)": None,
    "IRMv1(network, penalty_weight=3.0, vectorize=False)": None,
    "LIL(network, phase_weight=0.1, inner_steps=3)": None,
    "GradientNorm(every_n_steps=3)": None,
    "SinusoidMLP(hidden=(3,))": None,
    "SinusoidDataModule(environments_per_batch=3)": None,
    "MAML('no network', inner_lr=0.1)": 'incompatible type "str"',
    "MAML(network, inner_lrr=3)": "inner_lrr",
    "ANIL(network, inner_setps=3)": "inner_setps",
    "IRMv1(network, penalty=3.0)": "penalty",
    "GradientPenalty(network, sing=-1)": "sing",
    "reveal_type(BOIL(network).inner_loop().steps)": "int",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What mypy says of each line; one run for all."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("user")
    lines = [
        "from torch import nn",
        "from torch.nn import functional as F",
        "from lightning_gp import ANIL, BOIL, FOMAML, LIL, MAML, GradientPenalty, IRMv1",
        "from lightning_gp.callbacks import GradientNorm",
        "from lightning_gp.datamodules import SinusoidDataModule",
        "from lightning_gp.networks import SinusoidMLP",
        "network: nn.Module = SinusoidMLP()",
        *SNIPPETS,
    ]
    (folder / "mine.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(folder / "cache"), "mine.py"]
    environment = {**os.environ, "MYPYPATH": str(Path(__file__).parents[1])}
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment).stdout
    first = len(lines) - len(SNIPPETS) + 1
    return {
        snippet: [line for line in output.splitlines() if line.startswith(f"mine.py:{number}:")]
        for number, snippet in enumerate(SNIPPETS, first)
    }


@pytest.mark.slow  # .ci/run runs it beside mypy of the package
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_type_checker_knows_the_public_names(answers, snippet):
    wanted, found = SNIPPETS[snippet], answers[snippet]
    if wanted is None:
        assert found == []
    else:
        assert any(wanted in line for line in found)
