"""``lightning-gp init``: every starter is tried as its user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gp.cli import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("images", "tables")), "callbacks"]
)
def test_the_test_of_a_starter_passes(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", kind, "mine"]) == 0
    shown = capsys.readouterr().out
    assert "Next: cd mine && " in shown
    assert "README.md" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "mine",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_selection_finds_the_cause(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "tables"]) == 0
    output = subprocess.run(
        [sys.executable, "compare.py"], cwd="tables", capture_output=True, text=True, check=True
    ).stdout
    assert "chosen: " in output
    assert "in east: " in output


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("callbacks").mkdir()
    Path("callbacks/train.py").write_text("mine = 1\n")
    assert main(["init", "callbacks"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert Path("callbacks/train.py").read_text() == "mine = 1\n"
    with pytest.raises(SystemExit):
        main(["init", "audio"])
    assert "'images', 'tables', 'callbacks'" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["init", "callbacks", "empty"]) == 0
    assert Path("empty/train.py").is_file()
