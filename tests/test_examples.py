"""Every file of ``examples/`` runs, made small, and its README names it."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from lightning_gp import _lightning
from lightning_gp.cli import main
from tests.experiments.lil_images import write_classes

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SMALL = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(monkeypatch):
    """Runs a script in this process with Trainers that make two steps; returns their Trainers."""
    trainers = []

    def small(**options):
        shown = {"enable_progress_bar": False, "enable_model_summary": False}
        trainers.append(Trainer(**{**options, **SMALL, **shown}))
        return trainers[-1]

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return trainers

    Trainer = _lightning.Trainer
    monkeypatch.setattr(_lightning, "Trainer", small)
    monkeypatch.setattr(pl, "Trainer", small)
    return run


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_short_and_listed(path):
    assert len(path.read_text().splitlines()) < 60
    assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text()
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_watch_a_run(run):
    raw = Path("digits/MNIST/raw")
    raw.mkdir(parents=True)
    for part, count in (("train", 1000), ("t10k", 1)):
        for name, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            content = torch.randint(10, shape, dtype=torch.uint8)
            (raw / f"{part}-{name}-ubyte").write_bytes(header + content.numpy().tobytes())
    (trainer,) = run("watch_a_run.py", "digits", ".")
    assert {type(each).__name__ for each in trainer.callbacks} >= {"GradientNoise", "LearningRateBounds"}
    assert Path("watch_a_run.png").stat().st_size > 10_000


def test_select_penalty_weight(run, capsys):
    trainers = run("select_penalty_weight.py")
    assert len(trainers) == 3 * 3 + 1
    assert "chosen:" in capsys.readouterr().out


def test_own_loss_and_data(run):
    (trainer,) = run("own_loss_and_data.py", "1")
    assert {"test/error_step_0", "test/error_step_3", "test/loss_ci95"} <= trainer.callback_metrics.keys()


def test_attach_to_your_trainer(run):
    (trainer,) = run("attach_to_your_trainer.py")
    assert {"gradients/cosine", "curvature/eigenvalue_2"} <= trainer.callback_metrics.keys()
    assert list(Path("logs").rglob("metrics.csv"))


def test_irm_on_your_environments(run, capsys):
    _erm, irm = run("irm_on_your_environments.py")
    assert {"test/accuracy/east"} <= irm.callback_metrics.keys()
    assert "IRM weights of cause and shortcut" in capsys.readouterr().out


def write_photos(folder, classes=30, images=12):
    """A folder for each class, whose images are one coloured pattern under noise."""
    random = np.random.default_rng(0)
    for number in range(classes):
        home = folder / f"kind_{number}"
        home.mkdir(parents=True)
        pattern = np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((8, 8, 1)))
        for i in range(images):
            noisy = pattern + random.normal(0, 60, pattern.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(home / f"{i}.png")


def test_a_folder_of_classes_is_trained_by_the_config_as_it_is(tmp_path):
    write_photos(tmp_path / "photos", images=10)
    assert fit("class_folder_maml", "--trainer.fast_dev_run=true") == 0


@pytest.mark.slow
def test_three_algorithms_on_your_images_in_one_plot(tmp_path, monkeypatch, capsys):
    """A student with 30 folders of images, who wants three algorithms over three seeds in one plot."""
    script = EXAMPLES / "three_on_your_images.py"
    code = ast.parse(script.read_text()).body[1:]
    assert code[-1].end_lineno - code[0].lineno + 1 <= 12
    write_photos(tmp_path / "photos")
    words = ["--trainer.max_epochs=2", "--data.iterations_per_epoch=5", "--data.val_episodes=5", *QUIET]
    monkeypatch.setattr(sys, "argv", [script.name, "--data.test_episodes=40", "--model.network.channels=8", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out
    assert "9 of 9 trainings" in shown
    assert r"\begin{tabular}" in shown
    content = json.loads(Path("runs/compare/compare.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["MAML", "ANIL", "MAML + LIL"]
    assert all(
        row["paired"] and len(row["seeds"]) == 3 and row["value"] > 0.4 for row in content["rows"]
    )  # chance: 0.2
    assert Image.open("runs/compare/compare.png").size[0] > 1000
    runpy.run_path(str(script), run_name="__main__")  # once more: nothing is trained
    assert "0 of 9 trainings" in capsys.readouterr().out


def test_multi_gpu_on_one_device(run, capsys):
    (trainer,) = run("multi_gpu.py", "--devices=1", "--accelerator=cpu")
    assert trainer.world_size == 1
    assert "gradients/norm" in capsys.readouterr().out


def test_multi_gpu_under_torchrun_gives_the_numbers_of_one_device(tmp_path):
    script = tmp_path / "small.py"  # the example with fewer steps and episodes
    script.write_text((EXAMPLES / "multi_gpu.py").read_text().replace("=200", "=3").replace("=192", "=16"))
    words = [str(script), "--accelerator=cpu", "--epochs=1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    outputs = []
    for command in ([*words, "--devices=1"], [*torchrun, *words, "--devices=2"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(ast.literal_eval(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
    assert outputs[1] == pytest.approx(outputs[0], rel=1e-4)


def config(name, folder, **changes):
    """The example's config with images of class folders in the place of a benchmark's."""
    colour = "channels: 4, in_channels: 3"  # class folders give colour images
    content = yaml.safe_load((EXAMPLES / name).read_text().replace("channels: 64", colour))
    given = content["data"]["init_args"]
    size = {"environments_per_batch": 1, "iterations_per_epoch": 1, "val_episodes": 1, "test_episodes": 1}
    arguments = {key: given[key] for key in ("ways", "shots", "queries") if key in given} | size | changes
    content["data"] = {"class_path": "ClassFolderDataModule", "init_args": {"root": str(folder), **arguments}}
    Path(name).write_text(yaml.safe_dump(content))
    return name


def fit(file, *words):
    return main(["fit", "--config", file, "--trainer.max_epochs=1", *words, *QUIET])


def test_sinusoid():
    assert fit(str(EXAMPLES / "sinusoid_maml.yaml"), "--trainer.fast_dev_run=true") == 0


def test_lil_with_resnet12(tmp_path):
    write_classes(tmp_path / "images", size=84)
    file = config("lil_resnet12.yaml", tmp_path / "images", queries=2, shots=1)
    assert fit(file, "--model.init_args.network.init_args.widths=[2,2,2,2]") == 0
    assert Path("runs/lil_resnet12/checkpoints/last.ckpt").exists()


def test_omniglot_and_the_two_stages_of_lil_pretraining(tmp_path):
    write_classes(tmp_path / "images", size=28)
    for name in ("omniglot_maml.yaml", "lil_pretraining.yaml", "lil_fomaml.yaml"):
        assert fit(config(name, tmp_path / "images", image_size=28, queries=1)) == 0, name


def test_colored_mnist_is_understood(capsys):
    with pytest.raises(SystemExit) as finished:
        main(["fit", "--config", str(EXAMPLES / "colored_mnist_irm.yaml"), "--print_config"])
    assert finished.value.code in (None, 0)
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["init_args"]["anneal_steps"] == 190
    assert model["init_args"]["network"]["init_args"]["hidden"] == 390
