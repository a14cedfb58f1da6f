from __future__ import annotations

import json

import pytest
import torch
import yaml

from lightning_gp import ANIL, BOIL, FOMAML, LIL, MAML, LILPretraining
from lightning_gp._lightning import LightningModule
from lightning_gp.cli import main
from lightning_gp.experiments import lil_tables
from lightning_gp.experiments.lil_cells import Options, cells, chosen, data, stages
from lightning_gp.networks import Conv4, ResNet12
from lightning_gp.runs.config import built
from tests.experiments.lil_images import write_classes

TRIAL = ["--class-folders", "--image-size", "16", "--iterations", "2", "--val-episodes", "2", "--test-episodes", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name in ("mini", "tiered"):
        write_classes(root / name)
    return root


@pytest.fixture
def reproduce(images, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))

    def run(table, *words):
        trial = [*TRIAL, "--widths", *(["4"] * (4 if table == 4 else 1))]
        places = ["--data-dir", str(images), "--output", str(tmp_path / "runs"), "--device", "cpu"]
        return main(["reproduce", f"lil-table{table}", *words, *places, *trial])

    return run


def test_the_tables_have_all_cells_of_the_paper():
    assert [len(cells(table)) for table in (2, 3, 4, 5)] == [64, 128, 12, 48]
    by_name = {cell.name: cell.published for table in (2, 3) for cell in cells(table)}
    assert by_name["maml+lil/5-shot/mini"] == "66.34 ± 0.35"
    assert by_name["boil/1-shot/tiered"] == "50.56 ± 0.54"
    assert by_name["fomaml+lil/5-shot/cub-to-cars"] == "44.80 ± 0.22"
    for table in (2, 3, 4, 5):
        assert len({cell.name for cell in cells(table)}) == len(cells(table))


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        (2, "maml/1-shot/mini", (MAML, {"inner_steps": 3, "first_order": False})),
        (2, "fomaml/1-shot/mini", (FOMAML, {"first_order": True})),
        (2, "anil/1-shot/mini", (ANIL, {"adapted": ["head.weight", "head.bias"]})),
        (2, "boil/1-shot/mini", (BOIL, {})),
        (2, "maml+lil/1-shot/mini", (LIL, {"phase_weight": 0.1, "amplitude_weight": 0.01})),
        (2, "maml+lil/5-shot/mini", (LIL, {"phase_weight": 0.1, "amplitude_weight": 0.1})),
        (2, "anil+lil/5-shot/mini", (LIL, {"phase_weight": 0.1, "amplitude_weight": 0.0})),
        (2, "boil+lil/5-shot/mini", (LIL, {"phase_weight": 0.1, "amplitude_weight": 0.0})),
        (5, "maml+phase/5-shot/cars", (LIL, {"phase_weight": 0.1, "amplitude_weight": 0.0})),
        (5, "maml+amplitude/5-shot/cars", (LIL, {"phase_weight": 0.0, "amplitude_weight": 0.1})),
        (4, "maml/5-shot/mini-to-cars", (MAML, {})),
    ],
)
def test_settings_of_a_cell(table, name, expected):
    (cell,) = chosen(table, [name])
    [(config, iterations)] = stages(cell, Options(), "")
    module = built(LightningModule, config)
    kind, attributes = expected
    assert type(module) is kind
    assert {key: getattr(module, key) for key in attributes} == attributes
    rates, (group,) = set(module.inner_rates().values()), module.configure_optimizers().param_groups
    if table == 4:
        assert (rates, group["lr"], iterations, type(module.network)) == ({0.3}, 6e-4, 10_000, ResNet12)
    else:
        assert (rates, group["lr"], iterations, type(module.network)) == ({0.5}, 1e-3, 30_000, Conv4)
        assert module.network.body[0][0].weight.shape == (64, 3, 3, 3)


def test_fomaml_with_lil_is_pretraining_and_then_fomaml():
    (cell,) = chosen(2, ["fomaml+lil/1-shot/mini"])
    (first, half), (second, rest) = stages(cell, Options(), "somewhere")
    assert type(built(LightningModule, first)) is LILPretraining
    assert (half, rest) == (15_000, 15_000)
    assert second["class_path"] == "lightning_gp.FOMAML"
    assert second["init_args"]["network"]["init_args"]["checkpoint"] == "somewhere"
    assert data("cub", 5, 0, half, Options())["class_path"] == "CUBDataModule"


def test_cells_run_are_skipped_when_finished_and_aggregated(reproduce, tmp_path, capsys, monkeypatch):
    assert reproduce(2, "--cell", "maml+lil/1-shot/mini", "--seeds", "0", "1") == 0
    shown = capsys.readouterr().out
    assert "maml+lil/1-shot/mini, seed 1:" in shown
    folder = tmp_path / "runs/conv4/maml+lil/1-shot/mini/seed_0"
    result = json.loads((folder / "test_mini.json").read_text())
    assert result["iterations"] == 2
    weights = torch.load(folder / "best.ckpt", weights_only=True)
    assert weights["global_step"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(lil_tables, "built", lambda *_: pytest.fail("a finished run was started again"))
        assert reproduce(2, "--cell", "maml+lil/1-shot/mini", "--seeds", "0", "1") == 0
    # another table's cell of the same network only tests
    before = (folder / "best.ckpt").stat().st_mtime_ns
    assert reproduce(3, "--cell", "maml+lil/1-shot/mini-to-tiered", "--seeds", "1") == 0
    assert (folder / "best.ckpt").stat().st_mtime_ns == before
    assert reproduce(2, "--aggregate") == 0
    shown = capsys.readouterr().out
    assert "49.07 ± 0.14" in shown
    assert "Trials, not comparable: 2 instead of 30000 iterations." in shown
    table = json.loads((tmp_path / "runs/table2.json").read_text())
    values = [
        json.loads((tmp_path / f"runs/conv4/maml+lil/1-shot/mini/seed_{seed}/test_mini.json").read_text())["accuracy"]
        for seed in (0, 1)
    ]
    assert table["maml+lil/1-shot/mini"]["mean"] == pytest.approx(sum(values) / 2)
    assert table["maml+lil/1-shot/mini"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "mean" not in table["maml/1-shot/mini"]


def test_pretraining_then_fomaml_and_resnet12(reproduce, tmp_path):
    assert reproduce(2, "--cell", "fomaml+lil/5-shot/mini", "--seeds", "1") == 0
    folder = tmp_path / "runs/conv4/fomaml+lil/5-shot/mini/seed_0"
    first = torch.load(folder / "pretraining/final.ckpt", weights_only=True)
    assert first["global_step"] == 1
    assert any(name.startswith("teacher.") for name in first["state_dict"])
    assert reproduce(4, "--cell", "maml+lil/1-shot/mini*tiered", "--seeds", "1") == 0
    assert (tmp_path / "runs/resnet12/maml+lil/1-shot/mini/seed_0/test_tiered.json").is_file()


def test_list_and_config(reproduce, capsys):
    assert reproduce(5, "--list") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "maml+lil/5-shot/cars-to-cub"
    assert reproduce(2, "--cell", "boil/5-shot/mini", "--print-config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "lightning_gp.BOIL"
    assert config["trainer"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cell", "maml/2-shot/mini"], "has no cell 'maml/2-shot/mini'"),
        (["--cell", "maml/1-shot/cars"], "cars"),
        (["--cell", "fomaml+lil/1-shot/mini", "--iterations", "1"], "needs at least 2"),
        (["--cell", "maml/1-shot/mini", "--image-size", "8"], "image_size=8 must be a whole number of at least 16"),
    ],
)
def test_mistakes_are_told_before_training(words, message, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))
    places = ["--data-dir", str(images), "--output", str(tmp_path / "runs")]
    assert main(["reproduce", "lil-table2", *TRIAL, "--widths", "4", *places, "--seeds", "1", *words]) == 2
    assert message in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(reproduce, capsys, tmp_path):
    assert reproduce(2, "--cell", "anil/1-shot/mini", "--seeds", "1") == 0
    path = tmp_path / "runs/conv4/anil/1-shot/mini/seed_0/settings.json"
    path.write_text(path.read_text().replace('"iterations": 2', '"iterations": 30000'))
    assert reproduce(2, "--cell", "anil/1-shot/mini", "--seeds", "1") == 2
    assert "iterations was 30000, is 2" in capsys.readouterr().err
