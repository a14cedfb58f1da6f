"""``reproduce aopt``, ``tg`` and ``tuner``, and ``tune``: small runs of the real commands, and what they rest on."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_gp.cli import main
from lightning_gp.experiments import aopt, tg, tuner
from lightning_gp.experiments.aopt_measurements import Settings, best_rate, draw, fourier, gaussian, network, polynomial
from lightning_gp.theory import adaptation_loss, maml_solution

EXAMPLE = Path(__file__).parents[2] / "examples" / "sinusoid_maml.yaml"
TINY = Settings(tasks=(8, 64), draws=3, new_tasks=200, deviations=(1.0, 2.0), steps=4, width=4)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(("basis", "d"), [(polynomial(2), 3), (fourier(2), 5), (gaussian(4), 4), (network(3, 0), 10)])
def test_bases(basis, d):
    features = draw(basis, 5, TINY, 1.0, seed=0)
    assert features.shape == (5, TINY.examples, d)
    assert features.dtype == torch.float64
    assert torch.equal(features, draw(basis, 5, TINY, 1.0, seed=0))


def test_inputs_have_the_deviation_asked_for():
    inputs = draw(polynomial(1), 4000, TINY, 2.0, seed=0)[..., 1]
    assert float(inputs.std()) == pytest.approx(2.0, rel=0.02)


def test_best_rate_is_a_minimum():
    assert best_rate(lambda rate: (rate - 0.7) ** 2, 1.0) == pytest.approx(0.7, rel=1e-4)


def test_the_optimum_is_that_of_sampled_tasks(tmp_path):
    """α* from closed-form averages, against MAML fitted to drawn optima and tested on other tasks."""
    summary = aopt.aopt(settings=TINY, output=tmp_path)
    found = summary["estimation"]["Fourier"]
    train = [draw(fourier(), 64, TINY, 1.0, TINY.seed + 1 + i) for i in range(TINY.draws)]
    new = draw(fourier(), TINY.new_tasks, TINY, 1.0, TINY.seed)
    generator = torch.Generator().manual_seed(9)

    def optima(features):
        return torch.randn(len(features), features.shape[2], dtype=torch.float64, generator=generator)

    pairs = [(each, optima(each), optima(new)) for each in train for _ in range(10)]

    def loss(rate):
        losses = [adaptation_loss(new, b, rate, maml_solution(each, a, rate)) for each, a, b in pairs]
        return float(torch.stack(losses).mean())

    assert best_rate(loss, found["estimate"]) == pytest.approx(found["best"][-1], rel=0.03)
    assert found["error"][-1] < found["error"][0]
    assert json.loads((tmp_path / "aopt.json").read_text())["estimation"] == summary["estimation"]
    assert (tmp_path / "aopt.png").stat().st_size > 0


def test_tg_measures_both_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(tg, "SinusoidMLP", lambda: _smaller_network())
    settings = tg.Settings(iterations=3, environments=12, products=20, compile=False)
    summary = tg.tg(settings=settings, output=tmp_path)
    for key in ("mean", "single"):
        largest = summary[key]["h_squared"]["eigenvalues"]
        assert largest[0] >= largest[1] >= 0
        assert all(math.isfinite(summary[key][name]["frobenius_norm"]) for name in tg.NAMES)
    assert (tmp_path / "tg.png").is_file()
    with pytest.raises(ValueError, match="iterations was 3, is 4"):
        tg.tg(settings=replace(settings, iterations=4), output=tmp_path)
    with pytest.raises(ValueError, match="iterations=0"):
        tg.tg(settings=tg.Settings(iterations=0), output=tmp_path)


def _smaller_network():
    from lightning_gp.networks import SinusoidMLP

    return SinusoidMLP(hidden=(6,))


def test_tuner_experiment(tmp_path):
    words = ["--iterations", "10", "--steps", "4", "--environments", "3", "--output", str(tmp_path)]
    assert main(["reproduce", "tuner", "sinusoid", *words]) == 0
    summary = json.loads((tmp_path / "sinusoid.json").read_text())
    assert summary["rates"]["papers'"] == [0.01, 0.001]
    assert summary["at_least_as_good"] == (
        summary["loss_in_last_tenth"]["suggested"] <= summary["loss_in_last_tenth"]["papers'"]
    )
    assert (tmp_path / "sinusoid.png").is_file()
    assert (tmp_path / "sinusoid_tuning.png").is_file()


@pytest.mark.parametrize(("change", "message"), [({"problem": "images"}, "images"), ({"iterations": 9}, "iterations")])
def test_tuner_experiment_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        tuner.tuner(**{"problem": "sinusoid", **change})


def test_tune_command(capsys):
    words = ["--tune.iterations=4", "--data.init_args.environments_per_batch=3", "--trainer.accelerator=cpu"]
    assert main(["tune", "--config", str(EXAMPLE), *words]) == 0
    found = json.loads(Path("runs/tune/tune.json").read_text())
    assert f"--model.init_args.inner_lr={found['inner_lr']:.4g}" in capsys.readouterr().out
    assert Path("runs/tune/tune.png").is_file()
    assert main(["tune", "--config", str(EXAMPLE), "--tune.steps=1", "--trainer.accelerator=cpu"]) == 2
    assert "iterations=1 must be a whole number of at least 4" in capsys.readouterr().err
