"""The command line as a user types it, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_gp.cli import main
from lightning_gp.commands.reproduce import EXPERIMENTS

EXAMPLES = Path(__file__).parents[1] / "examples"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def small(command: str, *words: str) -> int:
    return main([command, "--config", str(EXAMPLES / "sinusoid_maml.yaml"), *words, *QUIET])


def test_without_arguments_it_says_what_it_can_do(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "fit", "validate", "test", "--model.help"))


def test_an_unknown_command_is_named(capsys):
    assert main(["train"]) == 2
    assert "'train' is no command; there are fit, validate" in capsys.readouterr().err


def test_reproduce_help_says_what_each_shows(capsys):
    assert main(["reproduce", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and experiment.shows in text for name, experiment in EXPERIMENTS.items())


def test_reproduce_lists_what_there_is(capsys):
    assert main(["reproduce", "everything"]) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in ("choose from", "colored-mnist", "gradient-norms", "lil-table2"))


def test_fit_then_test_from_the_checkpoint(capsys):
    assert small("fit", "--trainer.max_epochs=2", "--data.init_args.iterations_per_epoch=3") == 0
    assert Path("runs/sinusoid_maml/metrics.csv").read_text().startswith("epoch,step")
    assert (
        small("test", "--ckpt_path=runs/sinusoid_maml/checkpoints/last.ckpt", "--data.init_args.test_episodes=50") == 0
    )
    assert "test/loss_step_5_ci95" in capsys.readouterr().out


def test_help_explains_an_algorithm(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "MAML"])
    shown = " ".join(capsys.readouterr().out.split())
    for explanation in (
        "inner steps in training",
        "drop the second derivatives",
        "maps predictions",
        "how many environments",
    ):
        assert explanation in shown


@pytest.mark.parametrize("name", ["MAML", "FOMAML", "ANIL", "BOIL", "ERM"])
def test_algorithms_by_their_short_name(name):
    words = [f"--model={name}", "--model.network=lightning_gp.networks.SinusoidMLP"]
    words += ["--model.criterion=torch.nn.functional.mse_loss", "--data=SinusoidDataModule"]
    assert main(["fit", *words, "--trainer.fast_dev_run=true", *QUIET]) == 0


def test_a_users_own_class_in_the_working_folder():
    Path("mine.py").write_text(
        "import torch\nfrom lightning_gp import MAML\n"
        "class Mine(MAML):\n"
        "    def __init__(self, network: torch.nn.Module, factor: float = 1.0, **kwargs):\n"
        "        super().__init__(network, **kwargs)\n        self.factor = factor\n"
        "    def loss(self, parameters, x, y):\n"
        "        return self.factor * (self.predict(parameters, x) - y).square().mean()\n"
    )
    words = ["--model=mine.Mine", "--model.network=lightning_gp.networks.SinusoidMLP", "--model.factor=2"]
    assert main(["fit", *words, "--data=SinusoidDataModule", "--trainer.fast_dev_run=true", *QUIET]) == 0
    sys.modules.pop("mine")


def test_any_torch_optimizer_in_the_inner_loop():
    words = ["--model.init_args.inner_optimizer=torch.optim.Adam", "--model.init_args.inner_optimizer.lr=0.01"]
    assert small("fit", *words, "--trainer.fast_dev_run=true") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.inner_lr=-1"], "inner_lr=-1.0 must be"),
        (["--model.init_args.inner_steps=0"], "inner_steps=0 must be"),
        (["--data.init_args.environments_per_batch=0"], "environments_per_batch=0"),
        (["--model.init_args.adapt=tail"], "adapt='tail' picks none"),
        (["--model.init_args.network.init_args.out_features=3"], "output has shape (10, 3)"),
        (["--model.init_args.inner_rate=3"], "inner_rate"),
    ],
)
def test_a_users_mistake_gives_a_message_and_no_traceback(words, message, capsys):
    try:
        status = small("fit", *words, "--trainer.fast_dev_run=true")
    except SystemExit as stop:  # what the argument parser does with what it refuses itself
        status = stop.code
    shown = capsys.readouterr().err
    assert status == 2
    assert message in shown
    assert "Traceback" not in shown


def test_missing_omniglot_says_where_it_looked_and_what_to_do(capsys):
    config = str(EXAMPLES / "omniglot_maml.yaml")
    assert main(["fit", "--config", config, "--data.init_args.root=nowhere", *QUIET]) == 2
    shown = capsys.readouterr().err
    assert "nowhere" in shown
    assert "download" in shown


def test_demo_runs_and_leaves_a_plot(capsys):
    assert main(["demo", "--iterations", "20", "--output", "out"]) == 0
    assert Path("out/adaptation.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/metrics.csv").exists()
    assert "before adaptation" in capsys.readouterr().out
