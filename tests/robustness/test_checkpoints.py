"""Checkpoints: written whole, read without running code, refused with a reason where they do not fit."""

from __future__ import annotations

import http.server
import multiprocessing
import pickle
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import lightning_gp.modules as modules
from lightning_gp import MAML
from lightning_gp._lightning import Trainer, pl
from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from lightning_gp.checkpoints import WholeCheckpoints
from lightning_gp.cli import main
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from tests.robustness.interrupted_fit import STEPS_PER_EPOCH, write_config
from tests.robustness.journal import entries

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))


# -- at the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a config of one epoch and its checkpoint, as bytes."""
    folder = tmp_path_factory.mktemp("saved")
    config = yaml.safe_load(
        write_config(folder, 1).read_text()
    )  # what Lightning writes there is called config.yaml, too
    config["trainer"]["callbacks"] = [saves(folder / "checkpoints")]
    config["trainer"]["logger"] = False
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", list(sys.path))
        assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    return folder, (folder / "checkpoints" / "last.ckpt").read_bytes()


def saves(folder: Path) -> dict[str, object]:
    return {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder), "save_last": True}}


class Code:
    def __reduce__(self):
        return print, ("run",)


def with_code(content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_bytes(content)
        state = torch.load(Path(folder) / "a", weights_only=True)
        torch.save({**state, "code": Code()}, Path(folder) / "b")
        return (Path(folder) / "b").read_bytes()


UNREADABLE = {
    "without its last byte": (lambda content: content[:-1], "is not a whole checkpoint"),
    "half": (lambda content: content[: len(content) // 2], "give an earlier checkpoint as ckpt_path"),
    "empty": (lambda content: b"", "its 0 bytes do not end as a checkpoint does"),
    "text": (lambda content: b"weights: 3", "is not a whole checkpoint"),
    "a pickle": (lambda content: pickle.dumps({"state_dict": {}}), "is not a whole checkpoint"),
    "code": (with_code, "--weights_only false"),
}
OTHERS = {
    "network sizes": (
        ["--model.init_args.network.init_args.hidden=[7,5]"],
        "0.bias is (6,) in the checkpoint but (7,)",
    ),
    "layers": (["--model.init_args.network.init_args.hidden=[6]"], "is only in the checkpoint"),
    "learned rates": (["--model.init_args.learn_inner_lr=false"], "body/0/bias is only in the checkpoint"),
    "algorithm": (["--model.init_args.first_order=true", "--model.class_path=lightning_gp.FOMAML"], "MAML there"),
    "inner steps": (["--model.init_args.inner_steps=3"], "inner_steps is 2 there but 3 here"),
    "first order": (["--model.init_args.first_order=true"], "first_order is False there but True here"),
    "outer rate": (["--model.init_args.optimizer.init_args.lr=0.02"], "Adam's lr is 0.01 there but 0.02"),
    "optimizer": (["--model.init_args.optimizer=torch.optim.SGD"], "the optimizer is Adam there but SGD here"),
    "scheduler": (["--model.init_args.lr_scheduler.init_args.step_size=3"], "StepLR's step_size is 2 there"),
    "criterion": (["--model.init_args.criterion=torch.nn.functional.l1_loss"], "criterion is torch.nn.functional.mse"),
    "inner rate": (["--model.init_args.inner_lr=0.02"], "inner_lr is 0.01 there but 0.02 here"),
}


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return next(line for line in shown.splitlines() if line.startswith("lightning-gp: error:"))


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_whole_checkpoint_is_refused(saved, tmp_path, capsys, name):
    folder, content = saved
    change, message = UNREADABLE[name]
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(change(content))
    shown = refused(capsys, "fit", "--config", str(folder / "run.yaml"), "--ckpt_path", str(path))
    assert message in shown
    assert str(path) in shown


@pytest.fixture
def served(tmp_path):
    """A folder, and its address on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("flags", [[], ["--weights_only=true"]], ids=["default", "weights_only"])
@pytest.mark.parametrize("command", ["fit", "test", "validate"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_checkpoint_from_an_address_runs_no_code(saved, served, capsys, name, command, flags):
    (folder, content), (home, address) = saved, served
    change, message = UNREADABLE[name]
    (home / "a.ckpt").write_bytes(change(content))
    words = [command, "--config", str(folder / "run.yaml"), "--ckpt_path", f"{address}/a.ckpt", *flags]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "run\n" not in shown.out.replace(str(folder), "")


def test_checkpoints_from_addresses_are_read_anew_each_time(saved, served, capsys):
    (folder, content), (home, address) = saved, served
    (home / "a.ckpt").write_bytes(content)
    words = ["--config", str(folder / "run.yaml"), "--ckpt_path", f"{address}/a.ckpt"]
    assert main(["validate", *words]) == 0
    (home / "a.ckpt").unlink()
    assert "There is no checkpoint at http" in refused(capsys, "validate", *words)


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_configuration_is_refused(saved, tmp_path, capsys, name):
    folder, content = saved
    words, message = OTHERS[name]
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    shown = refused(capsys, "fit", "--config", str(folder / "run.yaml"), *words, "--ckpt_path", str(path))
    assert message in shown
    assert "ckpt_path" in shown


def test_evaluation_may_take_other_inner_steps_but_no_other_network(saved, capsys):
    folder, _ = saved
    words = ["--config", str(folder / "run.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    few = ["--data.init_args.test_episodes=3", "--model.init_args.inner_steps=4"]
    assert main(["test", *words, *few]) == 0
    assert "after 4 steps" in capsys.readouterr().out
    assert "holds other weights" in refused(capsys, "test", *words, OTHERS["network sizes"][0][0])


def test_a_missing_checkpoint_is_named(saved, capsys):
    folder, _ = saved
    shown = refused(capsys, "fit", "--config", str(folder / "run.yaml"), "--ckpt_path", "nowhere.ckpt")
    assert "There is no checkpoint" in shown
    assert "nowhere.ckpt" in shown


def test_last_without_a_checkpoint_starts_from_the_beginning_and_says_so(saved, tmp_path):
    folder, _ = saved
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["trainer"]["callbacks"] = [saves(tmp_path)]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="there is no last checkpoint available. No checkpoint will be loaded"):
        assert main(["fit", "--config", str(tmp_path / "run.yaml"), "--ckpt_path", "last"]) == 0
    weights = [torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (tmp_path, folder / "checkpoints")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_metrics_of_the_run_before_are_kept(saved, tmp_path):
    folder, _ = saved
    config = yaml.safe_load((folder / "run.yaml").read_text())
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": None, "version": ""}}
    config["trainer"]["logger"], config["trainer"]["callbacks"] = logger, [saves(tmp_path / "checkpoints")]
    config["data"]["init_args"]["test_episodes"] = 3
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "run.yaml")]) == 0
    first = (tmp_path / "metrics.csv").read_text()
    assert main(["test", "--config", str(tmp_path / "run.yaml"), "--ckpt_path", "last"]) == 0
    assert (tmp_path / "metrics.csv").read_text() == first
    assert "test/loss" in (tmp_path / "test/metrics.csv").read_text()


# -- from Python --------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return SinusoidMLP(hidden=(4, 3))


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


# Each with what is special to save; every algorithm's checkpoints are read in tests/testing.
ALGORITHMS = {
    "ANIL": lambda: modules.ANIL(network(), criterion=F.mse_loss),
    "BOIL": lambda: modules.BOIL(network(), criterion=F.mse_loss),
    "ERM": lambda: modules.ERM(network(), criterion=F.mse_loss),
    "EnvironmentModule": lambda: modules.EnvironmentModule(network(), criterion=F.mse_loss),
    "FOMAML": lambda: modules.FOMAML(network(), criterion=F.mse_loss, inner_lr={"body": 0.1, "head": 0.2}),
    "GradientPenalty": lambda: modules.GradientPenalty(network(), {"head": 0.1}, criterion=F.mse_loss),
    "IRMv1": lambda: modules.IRMv1(classifier()),
    "LIL": lambda: modules.LIL(network(), divergence="gaussian", criterion=F.mse_loss, learn_inner_lr=True),
    "LILPretraining": lambda: modules.LILPretraining(classifier()),
    "MAML": lambda: MAML(network(), criterion=F.mse_loss, adapt=lambda name: "head" in name, inner_lr_per="element"),
    "NamedEnvironmentModule": lambda: modules.NamedEnvironmentModule(network(), criterion=F.mse_loss),
    "REx": lambda: modules.REx(classifier()),
}


def probes() -> list[pl.Callback]:
    return [
        CosineSimilarity(),
        GradientNorm(every_n_steps=1),
        HessianEigenvalues(),
        LearningRateBounds(),
        PhaseAmplitudeConsistency(),
    ]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_checkpoints_load_without_running_code(tmp_path, name):
    generator = torch.Generator().manual_seed(0)
    module = ALGORITHMS[name]()
    if isinstance(module.network, SinusoidMLP):
        x = torch.rand(3, 6, 1, generator=generator)
        batch = Environments((x, x.sin()), (x, x.cos()))
    else:
        x = torch.rand(3, 6, 2, generator=generator)
        batch = Environments((x, torch.arange(6).remainder(3).expand(3, 6)), (x, torch.arange(6).fmod(3).expand(3, 6)))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=probes(), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[WholeCheckpoints()],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([batch, batch], batch_size=None)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    content = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert content["algorithm"] == name
    assert {key.partition("{")[0] for key in content["callbacks"]} == {type(probe).__name__ for probe in probes()}
    again = ALGORITHMS[name]()
    resumed = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, callbacks=probes(), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    resumed.fit(again, loader, ckpt_path=tmp_path / "whole.ckpt")
    assert resumed.current_epoch == 2


def _write_until_killed(path: str) -> None:
    files = WholeCheckpoints()
    for epoch in range(10**6):
        files.save_checkpoint({"epoch": epoch, "state_dict": {"w": torch.full((2**18,), float(epoch))}}, path)


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "last.ckpt"
    for attempt in range(4):
        writer = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(str(path),))
        writer.start()
        while not path.exists():
            assert writer.is_alive()
        writer.join(0.02 + 0.013 * attempt)
        writer.kill()
        writer.join()
        content = WholeCheckpoints().load_checkpoint(path)
        assert bool((content["state_dict"]["w"] == content["epoch"]).all())
    assert [found.name for found in tmp_path.glob("*.ckpt")] == ["last.ckpt"]  # `last` never finds the temporary ones


@pytest.mark.parametrize(
    "validation",
    ["every epoch", *(pytest.param(each, marks=pytest.mark.slow) for each in ("every second epoch", "none"))],
)
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_every_checkpoint_of_a_run_leads_to_the_same_end(tmp_path, validation):
    """Also those between the last step of an epoch and its validation, after which Lightning would skip both ends."""
    options = {
        "every epoch": {},
        "every second epoch": {"check_val_every_n_epoch": 2},
        "none": {"limit_val_batches": 0},
    }
    from tests.robustness.journal import Episodes, Journal

    def fit(folder: Path, **arguments: object) -> MAML:
        module = MAML(network(), 0.01, learn_inner_lr=True, criterion=F.mse_loss)
        data = SinusoidDataModule(shots=3, queries=3, environments_per_batch=2, iterations_per_epoch=3, val_episodes=2)
        each = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        measured = [GradientNorm(every_n_steps=2), CosineSimilarity(), HessianEigenvalues(), LearningRateBounds()]
        Trainer(
            accelerator="cpu", max_epochs=3, logger=Journal(str(folder / "journal.jsonl")), log_every_n_steps=1,
            callbacks=[Episodes(), *measured, each], enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, **options[validation],
        ).fit(module, data, **arguments)  # fmt: skip
        return module

    whole = fit(tmp_path / "whole")
    expected = entries(tmp_path / "whole" / "journal.jsonl")
    for step in (1, 3, 4, 6, 8):  # 3 and 6 end an epoch
        folder = tmp_path / str(step)
        resumed = fit(folder, ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        pairs = zip(resumed.parameters(), whole.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), step
        found = entries(folder / "journal.jsonl")
        assert all(expected[key] == values for key, values in found.items()), step
        # At the step of the checkpoint itself, what is logged at the end of the epoch comes after it.
        lost = {key for key in expected.keys() - found.keys() if key[1] >= step}
        assert not lost, step
        if step % 3 == 0:
            assert ("logged", step - 1, "gradients/cosine") in found
            due = validation == "every epoch" or (validation == "every second epoch" and step == 6)
            assert (("logged", step - 1, "val/loss") in found) == due


def test_steps_of_the_config_are_those_the_tests_assume():
    assert STEPS_PER_EPOCH % 3 == 0
