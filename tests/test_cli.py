"""The command line as a user types it, in this process."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_gp
from lightning_gp import MAML
from lightning_gp.cli import COMMANDS, main
from lightning_gp.commands.completion import script as completion_script
from lightning_gp.commands.reproduce import EXPERIMENTS
from lightning_gp.networks import SinusoidMLP
from lightning_gp.runs.run_folder import best_or_last

EXAMPLE = Path(__file__).parents[1] / "examples/sinusoid_maml.yaml"
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
    trained = Path("runs/sinusoid_maml/metrics.csv").read_text()
    few = "--data.init_args.test_episodes=50"
    assert small("test", "--ckpt_path=runs/sinusoid_maml/checkpoints/last.ckpt", few) == 0
    shown = capsys.readouterr().out
    assert "before adaptation  after 5 steps" in shown
    assert "95 % intervals over 50 episodes" in shown
    assert Path("runs/sinusoid_maml/metrics.csv").read_text() == trained
    assert "test/loss_step_5_ci95" in Path("runs/sinusoid_maml/test/metrics.csv").read_text()


def test_a_second_run_gets_its_own_folder_and_is_the_one_that_is_tested(capsys):
    for _ in range(2):
        assert small("fit", *FEW) == 0
    assert "runs/sinusoid_maml holds a run and stays" in capsys.readouterr().out
    for folder in ("runs/sinusoid_maml", "runs/sinusoid_maml_2"):
        assert [path.name for path in Path(folder, "checkpoints").glob("last*")] == ["last.ckpt"]
    for config, folder in ((EXAMPLE, "sinusoid_maml_2"), ("runs/sinusoid_maml/config.yaml", "sinusoid_maml")):
        assert main(["test", "--config", str(config), "--trainer.limit_test_batches=1", *QUIET]) == 0
        assert f"Weights: runs/{folder}/checkpoints/epoch" in capsys.readouterr().out
        assert Path("runs", folder, "test/metrics.csv").is_file()


def test_the_last_checkpoint_is_the_newest_where_nothing_gets_better():
    assert small("fit", *FEW, "--trainer.max_epochs=3", "--model.init_args.optimizer.init_args.lr=0") == 0
    folder = Path("runs/sinusoid_maml/checkpoints")
    steps = {path.stem: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}
    assert steps.pop("last") == 3
    assert list(steps.values()) == [1]  # the best, of equals the first


def test_resuming_goes_on_with_the_last_run_and_keeps_its_metrics():
    assert small("fit", *FEW) == 0
    assert small("fit", "--resume", *FEW, "--trainer.max_epochs=2") == 0
    assert torch.load("runs/sinusoid_maml/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert [row[0] for row in Path("runs/sinusoid_maml/metrics.csv").read_text().splitlines()[1:]] == ["0", "1"]
    assert not Path("runs/sinusoid_maml_2").exists()


@pytest.mark.parametrize("words", [["test"], ["test", "--ckpt_path=best"], ["validate", "--ckpt_path=last"]])
def test_without_a_run_there_is_nothing_to_test(words, capsys):
    assert small(*words) == 2
    assert "There is no" in capsys.readouterr().err
    assert not list(Path().rglob("*.csv"))


def test_initial_weights_are_tested_when_they_are_asked_for(capsys):
    assert small("test", "--ckpt_path=initial", "--trainer.limit_test_batches=1") == 0
    assert "after 5 steps" in capsys.readouterr().out


def test_the_best_is_what_the_checkpoint_monitors():
    words = ["--trainer.max_epochs=3", "--data.iterations_per_epoch=2", "--model.optimizer.lr=0.3"]
    assert small("fit", *words, "--trainer.callbacks.init_args.save_top_k=-1") == 0
    config = yaml.safe_load(Path("runs/sinusoid_maml/config.yaml").read_text())["trainer"]
    with Path("runs/sinusoid_maml/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert best_or_last(config).name.startswith(f"epoch={best['epoch']}-")
    assert best_or_last(config, "last").name == "last.ckpt"


def test_a_model_trained_here_is_loaded_without_saying_what_it_is():
    assert small("fit", *FEW) == 0
    module = MAML.load_from_checkpoint("runs/sinusoid_maml/checkpoints/last.ckpt")
    assert type(module.network) is SinusoidMLP
    assert module.criterion is torch.nn.functional.mse_loss
    saved = torch.load("runs/sinusoid_maml/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--model.inner_rat=3"], "'inner_lr'"),
        (["--data=SinusoidDataModul"], "'SinusoidDataModule'"),
        (["--model.network=SinusoidMPL"], "'SinusoidMLP'"),
        (["--trainer.max_epocs=3"], "'--trainer.max_epochs'"),
    ],
)
def test_a_typo_gets_a_suggestion_in_one_line(words, meant, capsys):
    with pytest.raises(SystemExit):
        small("fit", *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"Did you mean {meant}?" in line


@pytest.mark.parametrize("name", [*COMMANDS, "map plot", "data check", "reproduce lin", "reproduce lil-table2"])
def test_help_imports_neither_torch_nor_lightning(name):
    code = (
        "import sys; from lightning_gp.cli import main\n"
        f"try: main([*{name.split()!r}, '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) >= 3


def test_version_and_lists(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-gp {lightning_gp.__version__}\n"
    for kind, known in (("algorithms", "MAML"), ("networks", "Conv4"), ("callbacks", "GradientNorm")):
        assert main([kind]) == 0
        assert f"  {known} " in capsys.readouterr().out
    assert main(["data"]) == 0
    assert "  OmniglotDataModule " in capsys.readouterr().out


def test_help_of_an_algorithm_names_our_networks_and_no_torch_module(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "MAML"])
    shown = capsys.readouterr().out
    assert "Conv4" in shown
    assert "torch.nn.Linear" not in shown
    assert len(shown.splitlines()) < 140


def test_completion_knows_commands_options_and_classes():
    script = completion_script()
    asked = "COMP_WORDS=({words}); COMP_CWORD={last}; _lightning_gp; echo ${{COMPREPLY[@]}}\n"
    for words, found in (("lightning-gp di", "diagnose"), ("lightning-gp demo --it", "--iterations")):
        code = script + asked.format(words=words, last=len(words.split()) - 1)
        assert found in subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


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


FORBIDDEN = (
    "Tip:",
    "litlogger",
    "TPU",
    "deprecated",
    "will be deleted",
    "site-packages",
    "Modules in eval mode",
    "Traceback",
)


def test_the_screen_holds_no_line_that_a_user_cannot_use():
    """What fit, test and demo print in a process of their own, as a user sees it."""
    few = [*FEW, "--trainer.accelerator=cpu", "--data.test_episodes=20"]
    commands = [["fit", "--config", "sinusoid_maml", *few], ["test", "--config", "sinusoid_maml", *few[1:]]]
    commands.append(["demo", "--iterations", "20"])
    code = f"import sys; from lightning_gp.cli import main; sys.exit(max(map(main, {commands!r})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = run.stdout + run.stderr
    assert not [line for line in shown.splitlines() if any(word in line for word in FORBIDDEN)], shown
    for place in ("runs/sinusoid_maml/checkpoints", "runs/sinusoid_maml/test/metrics.csv", "runs/demo"):
        assert place in shown
