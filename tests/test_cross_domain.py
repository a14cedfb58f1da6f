"""``lightning-gp cross-domain`` on class folders of tiny images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_gp.cli import main
from tests.experiments.lil_images import write_classes

FIT = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def data(root, **options):
    arguments = {"ways": 3, "shots": 1, "queries": 3, "environments_per_batch": 2, "image_size": 16, **options}
    arguments |= {"iterations_per_epoch": 2, "val_episodes": 2, "test_episodes": 4}
    return {"data": {"class_path": "ClassFolderDataModule", "init_args": {"root": str(root), **arguments}}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("here", "there"):
        write_classes(tmp_path / name, classes=4, images=5)
    network = {"class_path": "lightning_gp.networks.Conv4"}
    network["init_args"] = {"ways": 3, "channels": 4, "in_channels": 3, "image_size": 16}
    model = {"class_path": "lightning_gp.MAML", "init_args": {"network": network, "inner_lr": 0.5}}
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/accuracy", "mode": "max"}}
    trainer = {"max_epochs": 1, "logger": False, "callbacks": [checkpoint]}
    contents = {
        "train": {"model": model, "trainer": trainer, **data("here")},
        "there": data("there"),
        "ways": data("there", ways=4),
        "large": data("there", image_size=32),
        "empty": {"trainer": {}},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def cross_domain(*words):
    return main(["cross-domain", "--config", "train.yaml", "--output", "out", *words, *FIT])


def test_trains_each_seed_tests_everywhere_and_resumes(files, capsys, monkeypatch):
    words = ["--test_data", "train.yaml", "there.yaml", "--seeds", "0", "1"]
    assert cross_domain(*words) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("train", "there", "accuracy", "±"))
    content = json.loads((files / "out/results.json").read_text())
    seeds = [content["runs"][f"seed_{seed}"]["there"]["accuracy"] for seed in (0, 1)]
    cell = content["table"]["there"]
    assert cell["seeds"] == seeds
    assert cell["mean"] == pytest.approx(sum(seeds) / 2)
    assert cell["std"] == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5)
    checkpoints = list((files / "out").glob("seed_*/checkpoints/*.ckpt"))
    assert len(checkpoints) == 2
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert cross_domain(*words) == 0  # finished seeds are read
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert cross_domain(*words, "--model.init_args.inner_lr=0.1") == 2
    assert "other settings" in capsys.readouterr().err

    again = ["--test_data", "there.yaml", "--output", "tested", "--ckpt", str(sorted(checkpoints)[0])]
    assert cross_domain(*again) == 0
    (result,) = json.loads((files / "tested/results.json").read_text())["runs"].values()
    assert result["there"]["accuracy"] == seeds[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test_data", "ways.yaml"], "test data 'ways' do not fit the network Conv4"),
        (["--test_data", "there.yaml", "large.yaml"], "shape (3, 32, 32)"),
        (["--test_data", "empty.yaml"], "names no data module"),
        (["--test_data", "missing.yaml"], "missing.yaml"),
        (["--test_data", "there.yaml", "there.yaml"], "must differ"),
        (["--test_data", "there.yaml", "--seeds", "1", "1"], "must differ"),
        (["--test_data", "there.yaml", "--ckpt", "missing.ckpt"], "no checkpoint"),
    ],
)
def test_mistakes_are_told_before_training(files, words, message, capsys):
    assert cross_domain(*words) == 2
    assert message in capsys.readouterr().err
    assert not (files / "out").exists()


def test_examples_of_pretraining_and_what_follows(files, capsys):
    """The examples' configs on tiny images: pre-training, FOMAML from its checkpoint, and from that of another net."""
    examples = Path(__file__).parents[1] / "examples"
    images = yaml.safe_dump(data("here"))
    tiny = ["ways=3", "channels=4", "in_channels=3", "image_size=16", "downsample=max_pool"]
    for name, prefix in (("lil_pretraining", ""), ("lil_fomaml", "network.init_args.")):
        content = yaml.safe_load((examples / f"{name}.yaml").read_text())
        content["data"] = yaml.safe_load(images)["data"]
        content["trainer"]["max_epochs"] = 1
        (files / f"{name}.yaml").write_text(yaml.safe_dump(content))
        network = [f"--model.init_args.network.init_args.{prefix}{word}" for word in tiny]
        assert main(["fit", "--config", f"{name}.yaml", *network, *FIT]) == 0
    network[1] = network[1].replace("=4", "=5")
    assert main(["fit", "--config", "lil_fomaml.yaml", *network, *FIT]) == 2
    assert "another network than this Conv4" in capsys.readouterr().err
