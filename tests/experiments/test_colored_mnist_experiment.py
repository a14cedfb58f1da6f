"""The IRM paper's experiment: its training by hand, its restarts, its table."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from lightning_gp.cli import main
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.experiments import colored_mnist as module
from lightning_gp.experiments.colored_mnist import KINDS, Settings, accuracy, colored_mnist, restart, train
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from tests.pools import InProcess


def environments(channels=2, sizes=(30, 30), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    result = {}
    for number, size in enumerate(sizes):
        gray = torch.rand(size, 14, 14, generator=generator, dtype=dtype)
        x = torch.zeros(size, channels, 14, 14, dtype=dtype)
        x[torch.arange(size), torch.randint(channels, (size,), generator=generator)] = gray
        result[str(number)] = (x, (torch.rand(size, 1, generator=generator) < 0.5).to(dtype))
    return result


@pytest.mark.parametrize("sizes", [(30, 30), (30, 23)])
def test_training_is_that_of_the_papers_formula(sizes, monkeypatch):
    """∇ of mean_τ [R_τ + λ (∂R_τ(w f)/∂w)²] + l2 ‖θ‖², over λ where that is above 1, by autograd through w."""
    monkeypatch.setattr(module, "ColoredMNISTMLP", lambda *args, **options: ColoredMNISTMLP(*args, **options).double())
    pairs = environments(sizes=sizes)
    settings = replace(Settings(), penalty_weight=50.0, anneal_steps=2, hidden=6, iterations=4)
    trained = train(ExampleEnvironments(train=pairs, steps_per_epoch=3), settings, seed=3).network
    torch.manual_seed(3)
    network = ColoredMNISTMLP(6).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    for step in range(4):
        weight = 1.0 if step < 2 else 50.0
        terms = []
        for x, y in pairs.values():
            w = torch.ones((), dtype=torch.float64, requires_grad=True)
            risk = F.binary_cross_entropy_with_logits(w * network(x), y)
            (slope,) = torch.autograd.grad(risk, w, create_graph=True)
            terms.append(risk + weight * slope**2)
        norm = sum(parameter.square().sum() for parameter in network.parameters())
        optimizer.zero_grad()
        ((sum(terms) / 2 + settings.l2 * norm) / max(1.0, weight)).backward()
        optimizer.step()
    for ours, theirs in zip(trained.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_accuracy_is_the_mean_over_environments():
    network = ColoredMNISTMLP(4).double()
    pairs = environments(sizes=(10, 30))
    shares = [((network(x) > 0).double() == y).double().mean().item() for x, y in pairs.values()]
    assert accuracy(network, pairs) == pytest.approx(sum(shares) / 2)


def fake_data(root, grayscale=False, examples=None, seed=0, steps_per_epoch=1):
    pairs = environments(1 if grayscale else 2, dtype=torch.float32)
    return ExampleEnvironments(train=pairs, test=pairs, steps_per_epoch=steps_per_epoch)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "ColoredMNISTDataModule", fake_data)
    monkeypatch.setattr(module, "ProcessPoolExecutor", InProcess)


def test_a_command_goes_on_and_adds_to_its_table(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "colored-mnist", "--restarts", "2", "--iterations", "2"]
    assert main([*words, "--kinds", "irm"]) == 0
    assert "irm" in capsys.readouterr().out
    first = json.loads((tmp_path / "runs/colored_mnist/colored_mnist.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", None)  # finished restarts are not trained again
        assert main([*words, "--kinds", "irm"]) == 0
    assert main([*words, "--kinds", "oracle"]) == 0
    table = json.loads((tmp_path / "runs/colored_mnist/colored_mnist.json").read_text())
    assert set(table) == {"irm", "oracle"}
    assert table["irm"] == first["irm"]
    seeds = table["irm"]["test"]["seeds"]
    assert table["irm"]["test"]["mean"] == pytest.approx(sum(seeds) / 2)
    assert len(list((tmp_path / "runs/colored_mnist/restarts").iterdir())) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_other_settings_are_refused_before_training(small, tmp_path, monkeypatch):
    settings = replace(KINDS["erm"], iterations=1, hidden=4)
    result = restart("erm", settings, 0, "data", tmp_path)
    assert result["settings"] == asdict(settings)
    monkeypatch.setattr(module, "train", None)
    with pytest.raises(ValueError, match="hidden was 4, is 256"):
        colored_mnist(kinds=["erm"], seeds=[0], iterations=1, output=tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kinds": ["sgd"]}, ValueError, "'sgd'"),
        ({"seeds": []}, ValueError, r"seeds=\[\]"),
        ({"seeds": [1, 1]}, ValueError, "all must differ"),
        ({"workers": 0}, ValueError, "workers=0"),
        ({"iterations": True}, TypeError, "iterations=True"),
        ({}, FileNotFoundError, "MNIST is missing"),
    ],
)
def test_bad_input(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        colored_mnist(**{"root": str(tmp_path), "output": tmp_path, **change})
