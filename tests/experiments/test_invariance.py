"""The comparison of invariance algorithms: what a trial is, how a model is selected, and the table."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lightning_gp.cli import main
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.environments import Environments
from lightning_gp.experiments import invariance_trials
from lightning_gp.experiments.invariance import invariance
from lightning_gp.experiments.invariance_trials import ALGORITHMS, Settings, build, chosen_by, trial
from lightning_gp.runs import trials
from tests.pools import InProcess

SMALL = Settings(examples=20, hidden=4, iterations=3, anneal_steps=1)


def examples(channels, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"agree_{number}": (
            torch.rand(size, channels, 14, 14, generator=generator),
            (torch.rand(size, 1, generator=generator) < 0.5).float(),
        )
        for number, size in enumerate(sizes)
    }


def fake_data(root, grayscale=False, examples_=20, seed=0, val_fraction=0.0, steps_per_epoch=1, **options):
    channels = 1 if grayscale else 2
    train, test = examples(channels, (20, 20), seed), examples(channels, (30,), seed + 100)
    return ExampleEnvironments(train, test, val_fraction=val_fraction, seed=seed, steps_per_epoch=steps_per_epoch)


@pytest.fixture
def small(monkeypatch):
    fake = lambda root, examples=20, **options: fake_data(root, **options)  # noqa: E731
    for place in ("lightning_gp.experiments.invariance", "lightning_gp.experiments.invariance_trials"):
        monkeypatch.setattr(f"{place}.ColoredMNISTDataModule", fake)
    monkeypatch.setattr(trials, "ProcessPoolExecutor", InProcess)
    invariance_trials.data_of.cache_clear()
    yield
    invariance_trials.data_of.cache_clear()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_same_weight_decay(name):
    """The gradient of a step, Adam's weight decay added, without the algorithm's own term: ∇[R + l2 ‖θ‖²]."""
    settings, channels = replace(SMALL, l2=0.3, anneal_steps=0), 1 if ALGORITHMS[name].grayscale else 2
    nothing = {"agreement": 0.5, "inner_lr": 1e-12, "penalty_weight": 0.0, "coefficient": 0.0, "eta": 0.0}
    torch.manual_seed(0)
    module = build(ALGORITHMS[name], nothing.get(ALGORITHMS[name].option, 0.0), settings).double()
    if name == "ib_irm":
        module.bottleneck_weight = 0.0
    pairs = [(x.double(), y.double()) for x, y in examples(channels, (8, 8)).values()]
    module.training_loss(Environments(tuple(torch.stack(each) for each in zip(*pairs, strict=True)))).backward()
    (group,) = module.configure_optimizers().param_groups
    ours = [each.grad + group["weight_decay"] * each.detach() for each in module.network.parameters()]
    parameters = list(module.network.parameters())
    risk = sum(F.binary_cross_entropy_with_logits(module.network(x), y) for x, y in pairs) / 2
    objective = risk + settings.l2 * sum(each.square().sum() for each in parameters)
    for found, expected in zip(ours, torch.autograd.grad(objective, parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_all_search_as_often():
    assert len({len(algorithm.values) for algorithm in ALGORITHMS.values()}) == 1


def test_a_trial_measures_what_its_network_does(small, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(invariance_trials, "build", lambda *args: made.append(build(*args)) or made[-1])
    row = trial("irmv1", 1, 3, SMALL, "data", tmp_path)
    data = fake_data("data", seed=3, val_fraction=0.2, steps_per_epoch=3)
    network, weight = made[0].network, ALGORITHMS["irmv1"].values[1]
    shares, objectives = {}, []
    for split in ("val", "test"):
        pairs = data.environments(split).values()
        shares[split] = [((network(x) > 0) == (y > 0.5)).double().mean().item() for x, y in pairs]
    for x, y in data.environments("val").values():
        w = torch.ones((), requires_grad=True)
        risk = F.binary_cross_entropy_with_logits(w * network(x).detach(), y)
        objectives.append((risk + weight * torch.autograd.grad(risk, w, create_graph=True)[0] ** 2).item())
    assert row["val"] == pytest.approx(statistics.fmean(shares["val"]))
    assert row["val_worst"] == pytest.approx(min(shares["val"]))
    assert row["test"] == pytest.approx(shares["test"][0])
    assert row["objective"] == pytest.approx(statistics.fmean(objectives), rel=1e-4)
    assert len(data.environments("val")["agree_0"][1]) == 4
    assert row["failed"] == (row["val"] <= 0.55)
    monkeypatch.setattr(invariance_trials, "build", None)
    assert trial("irmv1", 1, 3, SMALL, "data", tmp_path) == row


def test_a_trial_that_diverges_has_failed(small, tmp_path):
    row = trial("penalty_minus", 3, 0, replace(SMALL, lr=1e30), "data", tmp_path)
    assert row["failed"]
    assert row["loss"] is None
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in row.values())


def test_the_three_ways_select_by_what_they_say():
    rows = [
        {"number": 0, "val": 0.9, "objective": 3.0, "test": 0.1},
        {"number": 1, "val": 0.5, "objective": 1.0, "test": 0.2},
        {"number": 2, "val": 0.7, "objective": 2.0, "test": 0.6},
        {"number": 3, "val": None, "objective": None, "test": None},
    ]
    assert {way: row["number"] for way, row in chosen_by(rows).items()} == {"training": 0, "objective": 1, "test": 2}


def test_a_command_goes_on_and_makes_a_table(small, tmp_path, monkeypatch, capsys):
    words = ["reproduce", "invariance", "--seeds", "2", "--algorithms", "erm", "penalty_minus", "--examples", "20"]
    words += ["--hidden", "4", "--iterations", "3", "--anneal-steps", "1", "--output", str(tmp_path)]
    assert main(words) == 0
    assert "16 of 16" in capsys.readouterr().out
    path = tmp_path / "invariance.json"
    first = json.loads(path.read_text())
    kept = [json.loads(each.read_text()) for each in (tmp_path / "trials").iterdir()]
    assert len(kept) == 16
    for name, found in first["algorithms"].items():
        best = [max(row["test"] for row in kept if (row["algorithm"], row["seed"]) == (name, seed)) for seed in (0, 1)]
        assert found["selected"]["test"]["test"]["mean"] == pytest.approx(100 * statistics.fmean(best))
        assert found["failed"] == sum(row["failed"] for row in kept if row["algorithm"] == name)
        mean = found["selected"]["training"]["test"]["mean"]
        assert f"| {found['title']} | {mean:.1f} ±" in (tmp_path / "invariance.md").read_text()
    assert first["command"].endswith("--seeds [0,1] --examples 20 --hidden 4 --iterations 3 --anneal-steps 1")
    monkeypatch.setattr(invariance_trials, "build", None)  # finished trials are not trained again
    path.unlink()
    assert main(words) == 0
    assert json.loads(path.read_text()) == first
    with pytest.raises(ValueError, match="hidden was 4, is 5"):
        invariance(str(tmp_path), replace(SMALL, hidden=5), algorithms=["erm"], output=tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"algorithms": ["sgd"]}, ValueError, "'sgd'"),
        ({"seeds": []}, ValueError, r"seeds=\[\]"),
        ({"workers": 0}, ValueError, "workers=0"),
        ({"settings": Settings(hidden=0)}, ValueError, "hidden=0"),
        ({"settings": Settings(held_out=0)}, ValueError, "held_out=0"),
        ({}, FileNotFoundError, "MNIST is missing"),
    ],
)
def test_bad_input(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        invariance(**{"root": str(tmp_path), "output": tmp_path, **change})
