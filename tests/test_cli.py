"""The command line as a user types it, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

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


# -- configs ------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "plateau": {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau", "init_args": {"patience": 0}},
    "one cycle": {
        "class_path": "torch.optim.lr_scheduler.OneCycleLR",
        "init_args": {"max_lr": 0.1, "total_steps": 9},
    },
    "Lightning's dict": {
        "scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
        "interval": "step",
    },
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_from_a_config(name):
    config = yaml.safe_load((EXAMPLES / "sinusoid_maml.yaml").read_text())
    config["model"]["init_args"]["lr_scheduler"] = SCHEDULERS[name]
    Path("run.yaml").write_text(yaml.safe_dump(config))
    few = ["--trainer.max_epochs=2", "--data.init_args.iterations_per_epoch=3", "--data.init_args.val_episodes=2"]
    assert main(["fit", "--config", "run.yaml", *few, *QUIET]) == 0
    state = torch.load("runs/sinusoid_maml/checkpoints/last.ckpt", weights_only=True)
    assert state["optimizer_settings"][1]["interval"] == ("epoch" if name == "plateau" else "step")
    if name != "plateau":
        assert state["lr_schedulers"][0]["last_epoch"] == state["global_step"] >= 3


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
@pytest.mark.parametrize("signature", ["network, weight=0.1, **kwargs", "network, *, weight: float = 0.1, **kwargs"])
def test_a_subclass_without_annotations(future, signature, request):
    name = f"plain_{abs(hash(request.node.name))}"
    Path(f"{name}.py").write_text(
        f"{future}from lightning_gp import MAML\nclass Anchored(MAML):\n    def __init__(self, {signature}):\n"
        "        super().__init__(network, **kwargs)\n        self.weight = weight\n"
    )
    words = [f"--model={name}.Anchored", "--model.network=lightning_gp.networks.SinusoidMLP", "--model.weight=0.5"]
    words += ["--model.criterion=torch.nn.functional.mse_loss", "--data=SinusoidDataModule"]
    assert main(["fit", *words, "--trainer.fast_dev_run=true", *QUIET]) == 0
    sys.modules.pop(name)


UNREADABLE = {
    "UTF-16": ("model: {}\n".encode("utf-16"), "is not encoded in UTF-8"),
    "Latin": ("# größer\n".encode("latin-1"), "is not encoded in UTF-8"),
    "tabs": (b"model:\n\tclass_path: MAML\n", "line 2, is indented with a tab"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("flag", ["--config run.yaml", "--config=run.yaml", "-c run.yaml"])
def test_an_unreadable_config_gives_one_line(name, flag, capsys):
    content, message = UNREADABLE[name]
    Path("run.yaml").write_bytes(content)
    assert main(["fit", *flag.split(), *QUIET]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "run.yaml" in line


def test_a_config_with_a_byte_order_mark_is_read():
    Path("run.yaml").write_bytes(b"\xef\xbb\xbf" + (EXAMPLES / "sinusoid_maml.yaml").read_bytes())
    assert main(["fit", "--config", "run.yaml", "--trainer.fast_dev_run=true", *QUIET]) == 0


FEW = ["--trainer.max_epochs=1", "--data.init_args.iterations_per_epoch=1", "--data.init_args.val_episodes=1"]


@pytest.mark.parametrize(("before", "kept"), [("mine: 1\n", True), ("", False), (None, False)])
def test_the_config_of_a_run_replaces_no_other(before, kept, capsys):
    home = Path("runs/sinusoid_maml")
    if before is not None:
        home.mkdir(parents=True)
        (home / "config.yaml").write_text(before)
    for _ in range(2):  # the same run again writes the same file
        assert small("fit", *FEW) == 0
    written = home / ("config_1.yaml" if kept else "config.yaml")
    assert yaml.safe_load(written.read_text())["data"]["init_args"]["iterations_per_epoch"] == 1
    assert len(list(home.glob("config*"))) == 1 + kept
    if kept:
        assert (home / "config.yaml").read_text() == before
        assert "is the configuration of another run and stays" in capsys.readouterr().err


def test_a_config_that_is_cut_off_while_it_is_written_leaves_nothing(monkeypatch):
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_gp.files.os.replace", killed)
    with pytest.raises(SystemExit):
        small("fit", *FEW)
    assert not list(Path("runs").rglob("config*"))
