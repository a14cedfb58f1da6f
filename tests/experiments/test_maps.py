"""The maps of the papers, end to end on tiny grids."""

import json
from pathlib import Path

import pytest
import torch

from lightning_gp.commands import reproduce
from lightning_gp.experiments import map_lin, map_problems, penalties
from lightning_gp.experiments.maps import RUN, Run
from lightning_gp.theory import critical_outer_lr
from lightning_gp.trainability import TrainabilityMap, TrainabilityResult
from tests.experiments.lil_images import write_classes

pytest.importorskip("matplotlib")


@pytest.fixture
def shrunk(monkeypatch):
    """Replaces grid and length of the maps that a module makes."""

    def shrink(module, inner, outer, iterations):
        def small(objective, data, *grids, **options):
            options["iterations"] = iterations
            return TrainabilityMap(objective, data, inner, outer, **options)

        monkeypatch.setattr(module, "TrainabilityMap", small)

    return shrink


def run(folder, *words):
    reproduce.main([*words, "--output", str(folder)])


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_border_of_divergence_is_the_exact_bound(shrunk, algorithm):
    shrunk(map_lin, [1e-3, 3e-2, 5e-2, 8e-2], [5e-2, 0.2, 1.0, 3.0, 20.0], 300)
    trainability = map_lin.linear_map(algorithm, Run(seeds=[0]))
    result = trainability.run(progress=False)
    trainer = trainability.trainer(0)
    values = map_lin.eigenvalues(trainer, 300)
    x = next(trainer.stream.first(1))[0].support[0].flatten()
    features = torch.stack([x, torch.ones_like(x)])
    assert values == pytest.approx(torch.linalg.eigvalsh(2 * features @ features.T / len(x)).flip(0).tolist())
    for alpha in (1e-3, 3e-2, 8e-2):
        theory = float(critical_outer_lr(values, alpha, algorithm))
        assert map_lin.border(trainer, result, alpha) == pytest.approx(theory, rel=0.01)


def test_lin_writes_figure_and_table(shrunk, tmp_path):
    shrunk(map_lin, [1e-3, 1e-2], [5e-2, 0.2, 1.0], 200)
    run(tmp_path, "lin", "--seeds", "2")
    table = json.loads((tmp_path / "lin.json").read_text())
    assert [row["agrees"] for row in table["findings"]] == [True, True]
    assert table["command"] == "lightning-gp reproduce lin --seeds 2"
    tasks = [table["maml"], table["maml"]["other_seeds"]["1"]]
    assert tasks[0]["eigenvalues"] != tasks[1]["eigenvalues"]
    assert table["maml"]["largest_deviations"]["by_seed"] == [each["largest_deviation"] for each in tasks]
    assert (tmp_path / "lin.pdf").stat().st_size > 1000


def test_sin_and_adam(shrunk, tmp_path):
    shrunk(map_problems, [1e-3, 1e-1], [1e-2, 9.0], 3)
    run(tmp_path, "sin", "--quick", "--refine", "0.5")
    table = json.loads((tmp_path / "sin-quick.json").read_text())
    assert set(table["borders"]["by_alpha"]) == {"0.001", "0.1"}
    assert table["command"] == "lightning-gp reproduce sin --quick --refine 0.5"
    assert (tmp_path / "sin-quick.png").exists()
    result = TrainabilityResult.load(tmp_path / "sin-quick.jsonl")
    assert (result.header["seeds"], result.refined) == ([0, 1, 2, 3, 4], True)
    zero = result.seed_borders(0.0)
    assert table["borders"]["alpha_zero"]["by_seed"] == zero.tolist()
    assert table["borders"]["alpha_zero"]["median"] == sorted(zero)[2]
    assert table["near_the_end"]["over_alpha_zero"]["by_seed"] == (result.seed_borders(0.1) / zero).tolist()
    assert table["findings"][0]["agrees"] is table["near_the_end"]["holds"]
    run(tmp_path, "adam", "--seeds", "2")
    (finding,) = json.loads((tmp_path / "adam.json").read_text())["findings"]
    assert finding["agrees"] is None
    assert "a test needs 5 seeds" in finding["found"]


def test_options_on_which_numbers_depend_are_in_the_command():
    assert Run(quick=True, workers=3, device="cuda").words == ["--quick"]
    assert Run(seeds=[0, 1], refine=0.1).words == ["--seeds", "2", "--refine", "0.1"]
    assert Run(borders=True, seeds=[4]).words == ["--borders", "--seeds", "[4]"]
    assert Run(seeds=[3, 1]).words == ["--seeds", "[3, 1]"]
    alphas, betas = Run(borders=True).grid(("1e-4:9e-1", 12), ("1e-2:9e0", 10))
    assert (len(alphas), len(betas), betas[0], betas[-1]) == (36, 4, 1e-2, 9.0)


def test_penalties_of_both_signs_lie_on_their_bounds(monkeypatch, tmp_path):
    grids = {"lines": ([1e-3, 2e-2], [1e-2, 1.0]), "sinusoids": ([1e-3, 1e-1], [1e-2, 9.0])}

    def small(objective, data, *_, **options):
        lines = objective.keywords["problem"] == "lines"
        options["iterations"] = 120 if lines else 2
        return TrainabilityMap(objective, data, *grids[objective.keywords["problem"]], **options)

    monkeypatch.setattr(penalties, "TrainabilityMap", small)
    run(tmp_path, "penalties", "--seeds", "1", "--refine", "0.02")
    table = json.loads((tmp_path / "penalties.json").read_text())
    assert [row["agrees"] for row in table["findings"][1:4:2]] == [True, True]
    x = penalties._data(0, "lines")
    x.setup("fit")
    x = next(iter(x.train_dataloader())).query[0].flatten()
    features = torch.stack([x, torch.ones_like(x)])
    curvatures = torch.linalg.eigvalsh(2 * features @ features.T / len(x))
    assert table["lines, positive"]["eigenvalues"] == pytest.approx(curvatures.flip(0).tolist())
    for sign, name in ((-1, "negative"), (1, "positive")):
        bound = 2 / (curvatures + sign * 2 * 2e-2 * curvatures**2).max()
        found = table[f"lines, {name}"]["borders"]["by_alpha"]["0.02"]["median"]
        assert found == pytest.approx(float(bound), rel=0.05)
    assert (tmp_path / "penalties.png").exists()


def test_min_on_class_folders(shrunk, tmp_path):
    write_classes(tmp_path / "images")
    shrunk(map_problems, [1e-3, 1e-1], [1e-2, 9.0], 2)
    run(tmp_path, "min", "--quick", "--class-folders", "--image-size", "16", "--root", str(tmp_path / "images"))
    assert set(json.loads((tmp_path / "min-quick.json").read_text())["borders"]["by_alpha"]) == {"0.001", "0.1"}


def test_omn_with_both_optimizers(shrunk, characters, tmp_path, monkeypatch):
    shrunk(map_problems, [1e-3, 1e-1], [1e-2, 9.0], 1)
    monkeypatch.setattr(map_problems, "_omniglot", _two_ways)
    monkeypatch.setattr(map_problems, "_conv4", _small)
    run(tmp_path, "omn", "--quick", "--root", str(characters))
    run(tmp_path, "adam", "--quick", "--omniglot", str(characters))
    assert set(json.loads((tmp_path / "adam-quick.json").read_text())["borders"]) == {"sinusoid", "omniglot"}
    assert (tmp_path / "omn-quick.png").exists()


def _two_ways(seed, root, environments, queries):
    return map_problems.OmniglotDataModule(root, 2, 1, queries, environments_per_batch=2, seed=seed)


def _small(seed, channels):
    return map_problems.MAML(map_problems.Conv4(2, 4))


def test_full_settings_are_the_papers():
    mini = map_problems.mini_imagenet_map(RUN, "data")
    assert (mini.inner_lrs[0], mini.inner_lrs[-1], mini.outer_lrs[0], mini.outer_lrs[-1]) == (1e-4, 0.9, 0.01, 9.0)
    assert (mini.iterations, mini.data(0).environments_per_batch, mini.data(0).queries) == (10_000, 4, 15)
    sin = map_problems.sinusoid_map(RUN)
    assert (len(sin.inner_lrs), len(sin.outer_lrs), sin.iterations, sin.optimizer) == (36, 27, 500, "sgd")
    omn = map_problems.omniglot_map(RUN, "data")
    assert (omn.inner_lrs[0], omn.inner_lrs[-1], omn.outer_lrs[0], omn.outer_lrs[-1]) == (1e-3, 9.0, 0.1, 90.0)
    assert omn.iterations == 100
    cmn = map_problems.colored_mnist_map(RUN, "data")
    assert (cmn.inner_lrs[0], cmn.inner_lrs[-1], cmn.outer_lrs[0], cmn.outer_lrs[-1]) == (1e-2, 900.0, 1e-2, 90.0)
    assert (len(cmn.seeds), cmn.iterations) == (10, 500)
    lin = map_lin.linear_map("maml")
    assert (lin.inner_lrs[0], lin.inner_lrs[-1], lin.outer_lrs[0], lin.outer_lrs[-1]) == (1e-5, 9e-2, 5e-3, 9.0)


def test_a_shard_draws_nothing(shrunk, tmp_path):
    shrunk(map_problems, [1e-3, 1e-1], [1e-2, 9.0], 2)
    run(tmp_path, "sin", "--shard", "1/2")
    assert (tmp_path / "sin-1of2.jsonl").exists()
    assert not (tmp_path / "sin.png").exists()
    assert Run(quick=True).path("sin") == Path("runs/sin/sin-quick")
