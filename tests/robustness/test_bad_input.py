"""Every public name and every command refuses bad input with a message that names the cause and the remedy."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import yaml

from lightning_gp.cli import COMMANDS, main
from lightning_gp.commands.reproduce import EXPERIMENTS
from tests.public import PACKAGES
from tests.robustness.bad_input import RECORDS, TABLES

ROWS = [row for package, rows in TABLES.items() if package != "lightning_gp.modules" for row in rows]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LIGHTNING_GP_DEBUG", raising=False)
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def test_every_public_package_has_a_table():
    assert {f"lightning_gp{package}" for package in PACKAGES} == set(TABLES)


@pytest.mark.parametrize("package", TABLES)
def test_every_public_name_is_in_the_table(package):
    names = set(importlib.import_module(package).__all__)
    assert names - {row.name for row in TABLES[package]} <= RECORDS


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.name}-{i}" for i, row in enumerate(ROWS)])
def test_the_message_names_cause_and_remedy(row):
    with pytest.raises(row.error) as caught:
        row.call()
    message = str(caught.value)
    assert row.cause in message
    assert row.remedy in message.replace(row.cause, "", 1)


# -- the command line ---------------------------------------------------------------------------------------------

SIN = ["--config", str(EXAMPLES / "sinusoid_maml.yaml")]
OMN = ["--config", str(EXAMPLES / "omniglot_maml.yaml")]
FIT = ["fit", *SIN, "--trainer.fast_dev_run=true"]


def config(**changes: object) -> str:
    """The sinusoid config with other sections, as a file in the test's own folder."""
    content = yaml.safe_load((EXAMPLES / "sinusoid_maml.yaml").read_text()) | changes
    Path("config.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return "config.yaml"


def broken() -> str:
    Path("config.yaml").write_text("model: [lightning_gp.MAML\n")
    return "config.yaml"


def text_file() -> str:
    Path("map.jsonl").write_text("no map")
    return "map.jsonl"


CLI = {
    "no such command": (lambda: ["train"], "'train' is no command", "there are fit"),
    "fit without config": (lambda: ["fit"], "needs a config", "--config"),
    "fit, missing config": (lambda: ["fit", "--config", "nowhere.yaml"], "nowhere.yaml", "config"),
    "fit, broken YAML": (lambda: ["fit", "--config", broken()], "config", "line"),
    "fit, unknown section": (lambda: ["fit", "--config", config(trainr={"max_epochs": 1})], "trainr", "not accept"),
    "fit, unknown class": (
        lambda: ["fit", "--config", config(model={"class_path": "lightning_gp.MAMLL"})],
        "MAMLL",
        "lightning_gp",
    ),
    "fit, unknown argument": (lambda: [*FIT, "--model.init_args.inner_rate=3"], "inner_rate", "'inner_lr'"),
    "fit, unknown data": (lambda: [*FIT, "--data=NoDataModule"], "NoDataModule", "Did you mean"),
    "fit, text for a number": (lambda: [*FIT, "--model.init_args.inner_steps=two"], "two", "int"),
    "fit, inner rate": (lambda: [*FIT, "--model.init_args.inner_lr=-1"], "inner_lr=-1.0", "at least 0"),
    "fit, inner steps": (lambda: [*FIT, "--model.init_args.inner_steps=0"], "inner_steps=0", "at least 1"),
    "fit, counts": (lambda: [*FIT, "--data.init_args.shots=0"], "shots=0", "at least 1"),
    "fit, outputs": (
        lambda: [*FIT, "--model.init_args.network.init_args.out_features=2"],
        "output has shape (10, 2)",
        "must be equal",
    ),
    "fit, missing data": (lambda: ["fit", *OMN, "--data.init_args.root=nowhere"], "nowhere", "download"),
    "validate, missing checkpoint": (lambda: ["validate", *SIN, "--ckpt_path=no.ckpt"], "no.ckpt", ".ckpt file"),
    "test, missing checkpoint": (lambda: ["test", *SIN, "--ckpt_path=no.ckpt"], "no.ckpt", "leave out ckpt_path"),
    "predict, no data": (lambda: ["predict", *SIN], "predict", "--ckpt_path"),
    "demo, iterations": (lambda: ["demo", "--iterations", "0"], "iterations", "at least 1"),
    "demo, no number": (lambda: ["demo", "--iterations", "many"], "many", "int"),
    "map without config": (lambda: ["map"], "needs a config", "--config"),
    "map, grid": (lambda: ["map", *SIN, "--inner_lrs=fast", "--outer_lrs=1"], "fast", "LOW:HIGH"),
    "map, no grid": (lambda: ["map", *SIN], "both grids", "--outer_lrs 1e-2:9e0"),
    "map merge, nothing": (lambda: ["map", "merge"], "files", "--output"),
    "map merge, missing": (
        lambda: ["map", "merge", "no.jsonl", "--output", "o.jsonl"],
        "no.jsonl",
        "`lightning-gp map`",
    ),
    "map plot, missing": (lambda: ["map", "plot", "no.jsonl"], "no.jsonl", "`lightning-gp map`"),
    "map plot, no map": (lambda: ["map", "plot", text_file()], "map.jsonl", "map"),
    "tune, steps": (lambda: ["tune", *SIN, "--tune.iterations=0"], "iterations=0", "at least 4"),
    "tune, tolerance": (lambda: ["tune", *SIN, "--tune.tolerance=2"], "tolerance=2", "[0, 1)"),
    "diagnose, steps": (lambda: ["diagnose", *SIN, "--diagnose.steps=0"], "steps=0", "at least 1"),
    "diagnose, missing checkpoint": (lambda: ["diagnose", *SIN, "--ckpt_path", "no.ckpt"], "no.ckpt", "checkpoint"),
    "theory, nothing": (lambda: ["theory"], "--eigenvalues", "diagnose.json"),
    "theory, missing card": (lambda: ["theory", "--card", "no.json"], "no.json", "lightning-gp diagnose"),
    "theory, no curvature": (lambda: ["theory", "--eigenvalues", "0"], "none is positive", "bounds the rates"),
    "reproduce, unknown": (lambda: ["reproduce", "everything"], "everything", "choose from"),
    "reproduce, shard": (lambda: ["reproduce", "lin", "--shard", "3/2"], "3/2", "i/n"),
    "reproduce, missing data": (
        lambda: ["reproduce", "colored-mnist", "--root", "nowhere", "--seeds", "1"],
        "nowhere",
        "download",
    ),
    "cross-domain without data": (lambda: ["cross-domain", *SIN], "required", "--"),
    "data, no such word": (lambda: ["data", "chek"], "chek", "check"),
    "data check, missing config": (lambda: ["data", "check", "--config", "nowhere.yaml"], "nowhere.yaml", "config"),
    "data check, no images": (lambda: ["data", "check", *SIN], "no image files", "ClassFolderDataModule"),
    "data show, split": (lambda: ["data", "show", *OMN, "--split", "dev"], "dev", "train"),
    "data show, no data section": (
        lambda: ["data", "show", "--config", config(data=None)],
        "data",
        "section",
    ),
    "compare, no config": (lambda: ["compare", "--seeds", "2"], "--config", "required"),
    "report, no folder": (lambda: ["report", "nowhere"], "nowhere", "folder"),
    "init, kind": (lambda: ["init", "audio"], "audio", "tables"),
    "completion, shell": (lambda: ["completion", "fish"], "fish", "zsh"),
    "dashboard, nothing": (lambda: ["dashboard"], "--entity", "required"),
}


def test_every_command_is_in_the_table():
    assert {words.split(",")[0].split()[0] for words in CLI if words != "no such command"} == {*COMMANDS} - {
        "algorithms",
        "networks",
        "callbacks",
        "configs",
    }  # which print, whatever follows


@pytest.mark.parametrize("name", CLI)
def test_a_mistake_at_the_command_line_gives_a_few_lines_and_no_traceback(name, capsys):
    words, cause, remedy = CLI[name]
    try:
        status = main(words())
    except SystemExit as stop:  # from the argument parsers
        status = stop.code
    shown = capsys.readouterr().err
    assert status == 2, shown
    assert "Traceback" not in shown
    complaint = [line for line in shown.splitlines() if "error" in line.lower() or "is no command" in line]
    assert complaint, shown
    said = shown[shown.index(complaint[0]) :]
    assert len(said.splitlines()) <= 12, said
    assert cause in said
    assert remedy in said


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_refuses_an_unknown_option(experiment, capsys):
    if experiment.startswith("lil-table") and experiment != "lil-table1":
        needed = ["--list"]
    else:
        needed = {"tuner": ["sinusoid"], "gradient-norms": ["signs"]}.get(experiment, [])
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", experiment, *needed, "--no-such-option"])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "--no-such-option" in shown
    assert "usage" in shown
