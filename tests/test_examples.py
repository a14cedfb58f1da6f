"""Every file of ``examples/`` runs, made small, and its README names it."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml

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
