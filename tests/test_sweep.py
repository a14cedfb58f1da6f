"""``examples/sweep.yaml``: the command that a W&B agent would run is one that the command line understands."""

import os
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_gp.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sweep():
    return yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())


def test_sweep_is_over_both_rates(sweep):
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert set(sweep["parameters"]) == {"model.init_args.inner_lr", "model.init_args.optimizer.init_args.lr"}
    for bounds in sweep["parameters"].values():
        assert bounds["distribution"] == "log_uniform_values"
        assert 0 < bounds["min"] < bounds["max"]


def test_the_agents_command_is_understood(sweep, monkeypatch, capsys):
    shell, flag, script, *rest = sweep["command"]
    assert (shell, flag, rest) == ("bash", "-c", ["sweep", "${args}"])
    values = {"model.init_args.inner_lr": 0.037, "model.init_args.optimizer.init_args.lr": 0.59}
    assert values.keys() == sweep["parameters"].keys()

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_RUN_ID", "abc")  # the agent sets it
    words = shlex.split(os.path.expandvars(script))
    assert words[:2] == ["exec", "lightning-gp"]
    assert words[-1] == "$@"
    with pytest.raises(SystemExit) as finished:
        main([*words[2:-1], *(f"--{name}={value}" for name, value in values.items()), "--print_config"])
    assert finished.value.code in (None, 0)

    config = yaml.safe_load(capsys.readouterr().out)
    model, trainer = config["model"]["init_args"], config["trainer"]
    assert model["inner_lr"] == 0.037
    assert model["optimizer"]["class_path"] == "torch.optim.SGD"
    assert model["optimizer"]["init_args"]["lr"] == 0.59
    assert trainer["callbacks"] is None
    assert trainer["logger"]["class_path"].endswith("WandbLogger")
    assert trainer["logger"]["init_args"]["save_dir"] == "runs/sweep/abc"
