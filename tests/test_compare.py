"""``lightning-gp compare`` on sinusoids: from the command line to tables, killed and started again."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from lightning_gp import MAML, compare
from lightning_gp.cli import main
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.trainability import executors

FEW = ["--trainer.max_epochs=2", "--data.iterations_per_epoch=3", "--data.val_episodes=4", "--data.test_episodes=6"]
FIT = [*FEW, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
CHANGES = ["MAML:", "ANIL: model=ANIL model.inner_lr=0.1"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(*words, seeds=(0, 1)):
    options = ["--config", "sinusoid_maml", "--changes", *CHANGES, "--seeds", *map(str, seeds), *FIT]
    return main(["compare", *options, *words])


def contents(folder):
    """All that must be the same however a comparison was made."""
    names = ("compare.json", "table.csv", "test_episodes.csv", "metrics.csv")
    return {path.relative_to(folder): path.read_text() for name in names for path in Path(folder).rglob(name)}


def test_from_configs_to_tables(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    assert "4 of 4 trainings to do: MAML, ANIL; seeds 0, 1." in shown
    assert Path("runs/compare/table.txt").read_text().strip() in shown
    home = Path("runs/compare")
    configs = {name: yaml.safe_load((home / f"{name}/seed_1/config.yaml").read_text()) for name in ("MAML", "ANIL")}
    assert [config["model"]["class_path"] for config in configs.values()] == ["lightning_gp.MAML", "lightning_gp.ANIL"]
    assert configs["ANIL"]["data"]["init_args"]["seed"] == configs["ANIL"]["seed_everything"] == 1

    rows = json.loads((home / "compare.json").read_text())["rows"]
    batches = {path: json.loads(path.read_text())["batches"] for path in home.rglob("result.json")}
    assert len(set(batches.values())) == 2  # one set of episodes for each seed
    # the loss of each test episode, from the checkpoint and the data alone
    data = SinusoidDataModule(test_episodes=6, seed=1)
    data.setup("test")
    module = MAML.load_from_checkpoint(next((home / "MAML/seed_1/checkpoints").glob("epoch*"))).double()
    losses = []
    for environments in data.test_dataloader():
        environments = environments.map(torch.Tensor.double)
        adapted = module.predictions(environments.support, environments.query[0])
        losses += (adapted - environments.query[1]).square().flatten(1).mean(1).tolist()
    with (home / "MAML/seed_1/test_episodes.csv").open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file)]
    assert found == pytest.approx(losses, rel=1e-5)
    assert rows[0]["seeds"]["1"] == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert (rows[1]["name"], rows[1]["paired"]) == ("ANIL", True)

    # a finished comparison trains nothing, and refuses other settings
    before = contents(home)
    assert run("--metric", "loss_step_0") == 0
    assert "0 of 4 trainings" in capsys.readouterr().out
    assert json.loads((home / "compare.json").read_text())["metric"] == "loss_step_0"
    assert run() == 0
    assert contents(home) == before
    assert run("--model.optimizer.lr=0.5") == 2
    message = capsys.readouterr().err
    assert "model.init_args.optimizer.init_args.lr was 0.001, is 0.5" in message
    assert "another folder (--output)" in message
    assert contents(home) == before


# In the second of two epochs; the rate is so high that the first has the best weights.
KILLER = """
import os, signal
from pytorch_lightning import Callback
class Killer(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if os.environ.get("KILL") and trainer.global_step == 4 and "ANIL/seed_0" in trainer.default_root_dir:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on_where_it_was(capsys, monkeypatch):
    Path("mine.py").write_text(KILLER)
    more = ["--trainer.callbacks+=mine.Killer", "--model.optimizer.lr=1", "--output", "killed"]
    words = ["compare", "--config", "sinusoid_maml", "--changes", *CHANGES, "--seeds", "[0]", *FIT, *more]
    code = f"import os; os.environ['KILL'] = '1'; from lightning_gp.cli import main; main({words!r})"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    finished = sorted(str(path.parent.relative_to("killed")) for path in Path("killed").rglob("result.json"))
    assert finished == ["MAML/seed_0"]
    assert torch.load("killed/ANIL/seed_0/resume/last.ckpt", weights_only=True)["global_step"] == 3
    steps = []
    monkeypatch.setattr(MAML, "on_train_batch_start", lambda self, *_: steps.append(self.global_step), raising=False)
    assert run(*more, seeds=["[0]"]) == 0
    assert "1 of 2 trainings to do" in capsys.readouterr().out
    assert steps == [3, 4, 5]  # not from the beginning
    assert run(*more[:-1], "whole", seeds=["[0]"]) == 0
    assert contents("killed") == contents("whole")
    assert json.loads(Path("killed/ANIL/seed_0/result.json").read_text())["checkpoint"] == "epoch=0-step=3.ckpt"
    sys.modules.pop("mine")


class Inline(Executor):
    """Computes at once, and pretends that it is another process."""

    def submit(self, function, /, *args, **options):
        future = Future()
        future.set_result(function(*args, **options))
        return future


def test_threads_are_refused():
    with pytest.raises(ValueError, match="executor of processes"):
        compare(["sinusoid_maml"], words=FIT, seeds=[4], executor=ThreadPoolExecutor(1))


@pytest.mark.slow
def test_an_executor_computes_the_same(monkeypatch):
    places = iter(range(100))
    options = {"changes": CHANGES[1:], "words": FIT, "seeds": [4]}
    comparison = compare(["sinusoid_maml"], output="serial", **options)
    monkeypatch.setattr(executors, "_here", lambda: ("machine", next(places)))
    compare(["sinusoid_maml"], output=Path("elsewhere"), executor=Inline(), **options)
    assert contents("serial") == contents("elsewhere")
    assert str(comparison) == Path("elsewhere/table.txt").read_text().rstrip("\n")
    assert comparison.rows[0].estimate.over_seeds is None


@pytest.mark.slow
def test_two_processes_compute_the_same():
    assert run() == 0
    assert run("--workers", "2", "--output", "workers") == 0
    assert contents("runs/compare") == contents("workers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--changes", "ANIL model=ANIL"], "is not of the form"),
        (["--changes", "a: model=ANIL", "a: model=MAML"], "must differ, found a"),
        (["--changes", "a: model.inner_lr=-1"], "inner_lr=-1.0 must be"),
        (
            ["--changes", "wide: model.network.out_features=3", "--seeds", "1"],
            "wide: The network's output has shape (10, 3)",
        ),
        (["sinusoid_maml", "other.yaml", "--changes", "a:"], "give one, or several and no changes"),
        (["--seeds", "1", "1"], "must differ"),
        (["--baseline", "ANIL"], "baseline='ANIL' is none of sinusoid_maml"),
        (["--workers", "0"], "workers=0 must be"),
    ],
)
def test_mistakes_are_told_before_training(words, message, capsys):
    configs = [] if words[0] == "sinusoid_maml" else ["--config", "sinusoid_maml"]
    assert main(["compare", *words, *configs, *FIT]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_config_without_checkpoints_or_with_another_logger_can_be_compared():
    config = yaml.safe_load(yaml.safe_dump({"model": {"class_path": "ERM"}}))
    config["model"]["init_args"] = {"network": "SinusoidMLP", "criterion": "torch.nn.functional.mse_loss"}
    config |= {
        "data": {"class_path": "SinusoidDataModule"},
        "trainer": {"logger": False, "enable_checkpointing": False},
    }
    Path("erm.yaml").write_text(yaml.safe_dump(config))
    assert main(["compare", "erm.yaml", "--seeds", "[3]", *FIT]) == 0
    home = Path("runs/compare/erm/seed_3")
    assert {path.name for path in home.iterdir()} >= {"resume", "metrics.csv", "result.json"}
    assert json.loads((home / "result.json").read_text())["checkpoint"] == "last.ckpt"
    assert "minus" not in Path("runs/compare/table.txt").read_text()
