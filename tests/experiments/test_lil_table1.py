from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gp.datamodules import omniglot
from lightning_gp.experiments import lil_table1
from lightning_gp.experiments.lil_table1 import Settings, main, reproduce

NAMES = {
    "train": ["Alpha/character01", "Alpha/character02"],
    "val": ["Beta/character01", "Beta/character02"],
    "test": ["Gamma/character01", "Gamma/character02"],
}
TINY = Settings(iterations=4, ways=2, queries=3, channels=4, environments=2, val_episodes=2, test_episodes=3)


@pytest.fixture
def characters(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "vinyals_split", lambda: NAMES)
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in sorted(name for names in NAMES.values() for name in names):
        part = "images_evaluation" if name.startswith("Gamma") else "images_background"
        folder = tmp_path / "data" / part / name
        folder.mkdir(parents=True)
        for j in range(20):
            pixels = (rng.random((28, 28)) > 0.5).astype(np.uint8) * 255
            Image.fromarray(pixels).convert("1").save(folder / f"0001_{j + 1:02d}.png")
    return tmp_path / "data"


def test_the_table(characters, tmp_path, capsys):
    output = tmp_path / "table.json"
    options = {"root": str(characters), "settings": TINY, "runs": tmp_path / "runs", "output": output}
    content = reproduce(shots=(1, 2), seeds=2, accelerator="cpu", **options)
    assert "lil, adapted" in capsys.readouterr().out
    text = output.read_text()
    assert json.loads(text) == json.loads(json.dumps(content))
    assert str(tmp_path) not in text
    row = content["accuracy_percent"]["1-shot"]["lil, adapted"]
    own = [100 * run["lil"]["accuracy_step_3"] for run in content["runs"] if run["shots"] == 1]
    assert row["seeds"] == own
    assert row["mean"] == pytest.approx(sum(own) / 2)
    # the last weights are tested, not those that the validation labels would choose
    folder = tmp_path / "runs/1-shot/seed_0"
    assert json.loads((folder / "finished.json").read_text())["checkpoint"] == "final.ckpt"
    assert torch.load(folder / "final.ckpt", weights_only=True)["global_step"] == 4
    # finished runs are read; other settings in their folder are refused
    assert reproduce(shots=(1, 2), seeds=2, accelerator="cpu", **options)["runs"] == content["runs"]
    with pytest.raises(ValueError, match="iterations was 4, is 5"):
        reproduce(shots=(1,), seeds=1, **{**options, "settings": Settings(**{**vars(TINY), "iterations": 5})})


def test_a_killed_run_goes_on_to_the_same_numbers(characters, tmp_path, monkeypatch):
    def run(name):
        settings = Settings(**{**vars(TINY), "iterations": 6})
        folders = {"runs": tmp_path / name, "output": tmp_path / name / "table.json"}
        return reproduce(str(characters), (1,), 1, settings, **folders, accelerator="cpu")["runs"][0]["lil"]

    whole = run("whole")
    original = lil_table1.LILPretraining.update_teacher

    def killed(self):
        if self.trainer.global_step == 5:
            raise OSError("killed")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(lil_table1, "EPOCH", 2)
        patch.setattr(lil_table1.LILPretraining, "update_teacher", killed)
        with pytest.raises(OSError, match="killed"):
            run("killed")
    monkeypatch.setattr(lil_table1, "EPOCH", 2)
    assert (tmp_path / "killed/1-shot/seed_0/last.ckpt").is_file()
    assert run("killed") == whole


def test_command_line(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(lil_table1, "reproduce", lambda *arguments: seen.append(arguments))
    main(["--iterations", "7", "--shots", "1", "--seeds", "2", "--runs", "r", "--output", "o"])
    assert seen == [("data", [1], 2, Settings(iterations=7), "r", "o", "auto")]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="seeds=0"):
        reproduce(str(tmp_path), seeds=0)
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        reproduce(str(tmp_path), runs=tmp_path / "runs")
