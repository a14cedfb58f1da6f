"""A ``fit`` that is killed at random moments and resumed ends as if nothing had happened: bitwise, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_gp.cli import main
from tests.robustness.interrupted_fit import final_state, whole_checkpoints, write_config
from tests.robustness.journal import entries

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch):
    monkeypatch.chdir(ROOT)  # so that a config can name the journal by class_path
    monkeypatch.setattr(sys, "path", list(sys.path))


def differences(one: object, other: object, place: str = "") -> list[str]:
    """Where two nested states differ, bit by bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [place]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{place}/{i}")
        ]
    return [] if type(one) is type(other) and one == other else [place]


def killed(folder: Path, kills: int, seed: int, *options: str) -> list[dict[str, int | None]]:
    words = [sys.executable, "-m", "tests.robustness.killed_fit", str(folder), str(kills), str(seed), *options]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def compare(killed_folder: Path, whole_folder: Path) -> None:
    # A kill between a checkpoint and the removal of the one it replaces leaves both; all must be whole.
    assert len(whole_checkpoints(killed_folder)) >= len(whole_checkpoints(whole_folder)) == 3
    assert not differences(final_state(killed_folder), final_state(whole_folder))
    found, expected = entries(killed_folder / "journal.jsonl"), entries(whole_folder / "journal.jsonl")
    assert {key for key in expected if key[0] == "episodes"} == {key for key in found if key[0] == "episodes"}
    for key, values in found.items():  # whatever was logged or seen twice was the same both times
        assert values == expected[key], key
    # Lightning logs a step's own values after the step's checkpoint; killed in between, it does not log them again.
    lost = {key for key in expected.keys() - found.keys() if key[2] not in ("train/loss", "epoch")}
    assert not lost
    logged = {key[2] for key in found}
    assert {"val/loss", "gradients/cosine", "gradients/norm", "linearity/phase_consistency", "curvature/eigenvalue_1",
            "steps/curvature/eigenvalue_1", "learning_rates/inner_critical"} <= logged  # fmt: skip


@pytest.mark.parametrize(
    ("kills", "epochs", "seed", "options"),
    [
        (2, 3, 0, []),
        pytest.param(3, 4, 0, [], marks=pytest.mark.slow),
        pytest.param(10, 12, 1, [], marks=pytest.mark.slow),
        pytest.param(10, 12, 2, ["--processes"], marks=pytest.mark.slow),
    ],
)
def test_a_killed_fit_ends_as_the_whole_one(tmp_path, kills, epochs, seed, options):
    killed_folder, whole_folder = tmp_path / "killed", tmp_path / "whole"
    attempts = []
    for folder in (killed_folder, whole_folder):
        folder.mkdir()
        write_config(folder, epochs)
    attempts = killed(killed_folder, kills, seed, *options)
    print(*attempts, sep="\n")
    assert sum(attempt["signal"] is not None for attempt in attempts) == kills
    assert attempts[-1]["status"] == 0
    for attempt in attempts[:-1]:
        assert attempt["status"] != 0, "a killed run must not say that it finished"
    assert main(["fit", "--config", str(whole_folder / "config.yaml")]) == 0
    compare(killed_folder, whole_folder)
