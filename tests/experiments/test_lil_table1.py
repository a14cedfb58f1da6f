from __future__ import annotations

import json

import pytest
import torch

from lightning_gp.commands import reproduce
from lightning_gp.experiments import lil_table1 as module
from lightning_gp.experiments.lil_table1 import Settings, lil_table1

TINY = Settings(iterations=4, ways=2, queries=3, channels=4, environments=2, val_episodes=2, test_episodes=3)


def test_the_table(characters, tmp_path, capsys):
    options = {"root": str(characters), "settings": TINY, "output": tmp_path / "out", "device": "cpu"}
    content = lil_table1(shots=(1, 2), seeds=(0, 1), **options)
    assert "lil, adapted" in capsys.readouterr().out
    text = (tmp_path / "out" / "lil_table1.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(content))
    assert str(tmp_path) not in text
    row = content["accuracy_percent"]["1-shot"]["lil, adapted"]
    own = [100 * run["lil"]["accuracy_step_3"] for run in content["runs"] if run["shots"] == 1]
    assert row["seeds"] == own
    assert row["mean"] == pytest.approx(sum(own) / 2)
    # the last weights are tested, not those that the validation labels would choose
    folder = tmp_path / "out/1-shot/seed_0"
    assert json.loads((folder / "finished.json").read_text())["checkpoint"] == "final.ckpt"
    assert torch.load(folder / "final.ckpt", weights_only=True)["global_step"] == 4
    # finished runs are read; other settings in their folder are refused
    assert lil_table1(shots=(1, 2), seeds=(0, 1), **options)["runs"] == content["runs"]
    with pytest.raises(ValueError, match="iterations was 4, is 5"):
        lil_table1(shots=(1,), seeds=(0,), **{**options, "settings": Settings(**{**vars(TINY), "iterations": 5})})


def test_a_killed_run_goes_on_to_the_same_numbers(characters, tmp_path, monkeypatch):
    def run(name):
        settings = Settings(**{**vars(TINY), "iterations": 6})
        content = lil_table1(str(characters), (1,), (0,), settings, tmp_path / name, "cpu")
        return content["runs"][0]["lil"]

    whole = run("whole")
    original = module.LILPretraining.update_teacher

    def killed(self):
        if self.trainer.global_step == 5:
            raise OSError("killed")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(module, "EPOCH", 2)
        patch.setattr(module.LILPretraining, "update_teacher", killed)
        with pytest.raises(OSError, match="killed"):
            run("killed")
    monkeypatch.setattr(module, "EPOCH", 2)
    assert (tmp_path / "killed/1-shot/seed_0/last.ckpt").is_file()
    assert run("killed") == whole


def test_command_line(characters, tmp_path, capsys):
    small = {"iterations": 2, "shots": 1, "seeds": 1, "ways": 2, "channels": 4, "environments": 2, "val-episodes": 2}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    paths = ["--root", str(characters), "--output", str(tmp_path / "out"), "--device", "cpu"]
    reproduce.main(["lil-table1", *words, "--test-episodes", "2", *paths])
    content = json.loads((tmp_path / "out" / "lil_table1.json").read_text())
    assert content["settings"] == vars(Settings(2, 2, channels=4, environments=2, val_episodes=2, test_episodes=2))
    assert content["command"].endswith("--iterations 2 --seeds [0] --shots 1")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"seeds=\[\]"):
        lil_table1(str(tmp_path), seeds=())
    with pytest.raises(ValueError, match=r"shots=0"):
        lil_table1(str(tmp_path), shots=(1, 0))
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        lil_table1(str(tmp_path), output=tmp_path / "runs")
