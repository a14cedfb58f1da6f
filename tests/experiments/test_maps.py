"""The maps of the papers, end to end on tiny grids."""

import json
from argparse import Namespace

import pytest
import torch

from lightning_gp.experiments import maps, maps_adam, maps_cmn, maps_lin, maps_min, maps_omn, maps_sin
from lightning_gp.theory import critical_outer_lr
from lightning_gp.trainability import TrainabilityMap
from tests.experiments.lil_images import write_classes

pytest.importorskip("matplotlib")


def shrunk(monkeypatch, module, inner, outer, iterations):
    """Replaces grid and length of the maps that ``module`` makes."""

    def small(objective, data, *grids, **options):
        options["iterations"] = iterations
        return TrainabilityMap(objective, data, inner, outer, **options)

    monkeypatch.setattr(module, "TrainabilityMap", small)


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_border_of_divergence_is_the_exact_bound(monkeypatch, algorithm):
    shrunk(monkeypatch, maps_lin, [1e-3, 3e-2, 5e-2, 8e-2], [5e-2, 0.2, 1.0, 3.0, 20.0], 300)
    trainability = maps_lin.linear_map(algorithm)
    result = trainability.run(progress=False)
    trainer = trainability.trainer(0)
    values = maps_lin.eigenvalues(trainer, 300)
    x = next(trainer.stream.first(1))[0].support[0].flatten()
    features = torch.stack([x, torch.ones_like(x)])
    assert values == pytest.approx(torch.linalg.eigvalsh(2 * features @ features.T / len(x)).flip(0).tolist())
    for alpha in (1e-3, 3e-2, 8e-2):
        theory = float(critical_outer_lr(values, alpha, algorithm))
        assert maps_lin.border(trainer, result, alpha) == pytest.approx(theory, rel=0.01)


def test_lin_writes_figure_and_table(monkeypatch, tmp_path):
    shrunk(monkeypatch, maps_lin, [1e-3, 1e-2], [5e-2, 0.2, 1.0], 200)
    maps_lin.main(["--output", str(tmp_path)])
    table = json.loads((tmp_path / "lin.json").read_text())
    assert [row["agrees"] for row in table["findings"]] == [True, True]
    assert (tmp_path / "lin.pdf").stat().st_size > 1000


def test_sin_and_adam(monkeypatch, tmp_path):
    shrunk(monkeypatch, maps_sin, [1e-3, 1e-1], [1e-2, 9.0], 3)
    maps_sin.main(["--output", str(tmp_path), "--quick"])
    table = json.loads((tmp_path / "sin-quick.json").read_text())
    assert set(table["borders"]["by_alpha"]) == {"0.001", "0.1"}
    assert (tmp_path / "sin-quick.png").exists()
    maps_adam.main(["--output", str(tmp_path)])
    assert len(json.loads((tmp_path / "adam.json").read_text())["findings"]) == 1


def test_min_on_class_folders(monkeypatch, tmp_path):
    write_classes(tmp_path / "images")
    shrunk(monkeypatch, maps_min, [1e-3, 1e-1], [1e-2, 9.0], 2)
    words = ["--quick", "--class-folders", "--image-size", "16", "--root", str(tmp_path / "images")]
    maps_min.main([*words, "--output", str(tmp_path)])
    assert set(json.loads((tmp_path / "min-quick.json").read_text())["borders"]["by_alpha"]) == {"0.001", "0.1"}


def test_full_settings_are_the_papers():
    mini = maps_min.mini_imagenet_map("data")
    assert (mini.inner_lrs[0], mini.inner_lrs[-1], mini.outer_lrs[0], mini.outer_lrs[-1]) == (1e-4, 0.9, 0.01, 9.0)
    assert (mini.iterations, mini.data(0).environments_per_batch, mini.data(0).queries) == (10_000, 4, 15)
    sin = maps_sin.sinusoid_map()
    assert (len(sin.inner_lrs), len(sin.outer_lrs), sin.iterations, sin.optimizer) == (36, 27, 500, "sgd")
    omn = maps_omn.omniglot_map("data")
    assert (omn.inner_lrs[0], omn.inner_lrs[-1], omn.outer_lrs[0], omn.outer_lrs[-1]) == (1e-3, 9.0, 0.1, 90.0)
    assert omn.iterations == 100
    cmn = maps_cmn.colored_mnist_map("data")
    assert (cmn.inner_lrs[0], cmn.inner_lrs[-1], cmn.outer_lrs[0], cmn.outer_lrs[-1]) == (1e-2, 900.0, 1e-2, 90.0)
    assert (len(cmn.seeds), cmn.iterations) == (10, 500)
    lin = maps_lin.linear_map("maml")
    assert (lin.inner_lrs[0], lin.inner_lrs[-1], lin.outer_lrs[0], lin.outer_lrs[-1]) == (1e-5, 9e-2, 5e-3, 9.0)


def test_a_shard_draws_nothing(monkeypatch, tmp_path, capsys):
    shrunk(monkeypatch, maps_sin, [1e-3, 1e-1], [1e-2, 9.0], 2)
    maps_sin.main(["--output", str(tmp_path), "--shard", "1/2"])
    assert (tmp_path / "sin-1of2.jsonl").exists()
    assert not (tmp_path / "sin.png").exists()
    assert maps.file_name("sin", Namespace(quick=True)) == "sin-quick"
