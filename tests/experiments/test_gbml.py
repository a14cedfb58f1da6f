"""The comparison of meta-learning algorithms: what a trial measures, and the table."""

import json
import statistics

import pytest
import torch
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.cli import main
from lightning_gp.experiments import gbml_trials
from lightning_gp.experiments.gbml import gbml
from lightning_gp.experiments.gbml_trials import ALGORITHMS, Settings, build, data_of, trial
from lightning_gp.runs import trials
from tests.pools import InProcess

SMALL = Settings(iterations=2, environments=3, val_episodes=4, test_episodes=5, outer_lr=1e-30)


def test_a_trial_measures_the_adapted_loss(tmp_path):
    """An outer rate so small that float32 weights stay what they are, and gradient descent by hand."""
    row = trial("sinusoid", "MAML", 0.03, 7, SMALL, "data", tmp_path)
    pl.seed_everything(7, verbose=False)
    network = build("sinusoid", "MAML", 0.03, SMALL).network
    data = data_of("sinusoid", 7, SMALL, "data")
    data.setup()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        losses = []
        for batch in loader:
            for x, y, query_x, query_y in zip(*batch.support, *batch.query, strict=True):
                theta = {name: value.detach().clone() for name, value in network.named_parameters()}
                for _ in range(3):
                    theta = {name: value.requires_grad_() for name, value in theta.items()}
                    loss = F.mse_loss(torch.func.functional_call(network, theta, (x,)), y)
                    gradients = torch.autograd.grad(loss, list(theta.values()))
                    theta = {
                        name: (value - 0.03 * g).detach()
                        for (name, value), g in zip(theta.items(), gradients, strict=True)
                    }
                losses.append(F.mse_loss(torch.func.functional_call(network, theta, (query_x,)), query_y).item())
        assert row[split] == pytest.approx(statistics.fmean(losses), rel=1e-4)
    assert row["test_ci95"] == pytest.approx(1.96 * statistics.stdev(losses) / len(losses) ** 0.5, rel=1e-3)
    assert min(row["memory"], row["seconds"], row["processor_seconds"]) > 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_takes_the_same_steps_at_the_same_rates(name):
    module = build("sinusoid", name, 0.03, SMALL)
    assert (module.inner_steps, set(module.inner_rates.numbers())) == (3, {0.03})
    (group,) = module.configure_optimizers().param_groups
    assert group["lr"] == SMALL.outer_lr


def test_a_command_goes_on_and_makes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ProcessPoolExecutor", InProcess)
    words = ["reproduce", "gbml", "--problems", "sinusoid", "--algorithms", "MAML", "Reptile", "--seeds", "2"]
    words += ["--iterations", "2", "--environments", "3", "--val-episodes", "4", "--test-episodes", "5"]
    words += ["--output", str(tmp_path)]
    assert main(words) == 0
    path = tmp_path / "gbml.json"
    first = json.loads(path.read_text())
    kept = [json.loads(each.read_text()) for each in (tmp_path / "trials").iterdir()]
    assert len(kept) == 2 * 2 * 3
    for name, found in first["problems"]["sinusoid"].items():
        best = [
            min((row for row in kept if (row["algorithm"], row["seed"]) == (name, seed)), key=lambda row: row["val"])
            for seed in (0, 1)
        ]
        assert found["rates"] == [row["rate"] for row in best]
        assert found["test"]["mean"] == pytest.approx(statistics.fmean(row["test"] for row in best))
        assert f"| {name} | {found['test']['mean']:.2f} ±" in (tmp_path / "gbml.md").read_text()
    monkeypatch.setattr(gbml_trials, "build", None)  # finished trials are not trained again
    path.unlink()
    assert main(words) == 0
    assert json.loads(path.read_text()) == first


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"algorithms": ["sgd"]}, ValueError, "'sgd'"),
        ({"problems": ["cats"]}, ValueError, "'cats'"),
        ({"seeds": [1, 1]}, ValueError, "all must differ"),
        ({"settings": Settings(inner_steps=0)}, ValueError, "inner_steps=0"),
        ({}, FileNotFoundError, "No Omniglot"),
    ],
)
def test_bad_input(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        gbml(**{"root": str(tmp_path), "output": tmp_path, **change})
