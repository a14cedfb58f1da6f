import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lightning_gp.environments import Environments
from lightning_gp.experiments import colored_mnist
from lightning_gp.experiments.colored_mnist import KINDS, Settings, accuracy, reproduce, restart, train
from lightning_gp.experiments.colored_mnist_gradient import FullBatchGradient
from lightning_gp.modules.irm import IRMv1
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP


def environments(channels=2, sizes=(30, 30), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    result = []
    for size in sizes:
        gray = torch.rand(size, 14, 14, generator=generator, dtype=dtype)
        gray[:, :2] = 0  # black in all images
        x = torch.zeros(size, channels, 14, 14, dtype=dtype)
        colours = torch.randint(channels, (size,), generator=generator)
        x[torch.arange(size), colours] = gray
        result.append((x, (torch.rand(size, 1, generator=generator) < 0.5).to(dtype)))
    return result


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 1.0, 500.0])
def test_written_out_gradient_is_that_of_the_module(channels, weight, monkeypatch):
    monkeypatch.setattr("lightning_gp.experiments.colored_mnist_gradient.BLOCK_ROWS", 7)
    torch.manual_seed(0)
    network = ColoredMNISTMLP(11, channels=channels).double()
    torch.nn.init.normal_(network.body[1].bias)
    pairs = environments(channels, sizes=(30, 23))
    module = IRMv1(
        network, penalty_weight=weight, rescale_loss=True, l2=0.01, criterion=F.binary_cross_entropy_with_logits
    )
    loss = module.training_loss([Environments((x.unsqueeze(0), y.unsqueeze(0))) for x, y in pairs])
    expected = torch.autograd.grad(loss, list(network.parameters()))
    FullBatchGradient(pairs, 11, 0.01)(network, weight, divisor=max(1.0, weight))
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-14)


def test_images_in_two_channels_are_refused():
    with pytest.raises(ValueError, match="more than one channel"):
        FullBatchGradient([(torch.ones(3, 2, 14, 14), torch.ones(3, 1))], 4, 0.0)


def test_training_is_that_of_the_module():
    pairs = environments()
    settings = replace(Settings(), penalty_weight=50.0, anneal_steps=2, hidden=6, steps=4)
    trained = train(pairs, settings, seed=3)
    torch.manual_seed(3)
    network = ColoredMNISTMLP(6).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    batch = Environments(tuple(torch.stack([pair[i] for pair in pairs]) for i in (0, 1)))
    for step in range(4):
        module = IRMv1(
            network, penalty_weight=1.0 if step < 2 else 50.0, rescale_loss=True, l2=settings.l2,
            criterion=F.binary_cross_entropy_with_logits,
        )  # fmt: skip
        optimizer.zero_grad()
        module.training_loss(batch).backward()
        optimizer.step()
    for ours, theirs in zip(trained.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_accuracy_is_the_mean_over_environments():
    network = ColoredMNISTMLP(4).double()
    pairs = environments(sizes=(10, 30))
    shares = [((network(x) > 0).double() == y).double().mean().item() for x, y in pairs]
    assert accuracy(network, pairs) == pytest.approx(sum(shares) / 2)


class FakeData:
    def __init__(self, data_dir, **kwargs):
        self.channels = 1 if kwargs.get("grayscale") else 2

    def setup(self):
        pass

    def environments(self, split):
        return dict(enumerate(environments(self.channels, dtype=torch.float32)))


class InProcess:
    """Stands in for the pool of processes, which would not see the fake data."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*args))
        return future


def test_reproduce_resumes_and_writes_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(colored_mnist, "ColoredMNISTDataModule", FakeData)
    monkeypatch.setattr(colored_mnist, "ProcessPoolExecutor", InProcess)
    options = {"restarts": 2, "runs": str(tmp_path / "runs"), "output": str(tmp_path / "out.json"), "steps": 2}
    first = reproduce(["irm"], **options)
    assert "irm" in capsys.readouterr().out
    monkeypatch.setattr(colored_mnist, "train", None)  # finished restarts are not trained again
    assert reproduce(["irm"], **options)["irm"] == first["irm"]
    monkeypatch.undo()
    monkeypatch.setattr(colored_mnist, "ColoredMNISTDataModule", FakeData)
    monkeypatch.setattr(colored_mnist, "ProcessPoolExecutor", InProcess)
    reproduce(["oracle"], **options)
    table = json.loads((tmp_path / "out.json").read_text())
    assert set(table) == {"irm", "oracle"}
    restarts = table["irm"]["test"]["restarts"]
    assert table["irm"]["test"]["mean"] == pytest.approx(sum(restarts) / 2)
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_other_settings_are_run_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(colored_mnist, "ColoredMNISTDataModule", FakeData)
    for steps in (1, 2):
        result = restart("erm", replace(KINDS["erm"], steps=steps, hidden=4), 0, "data", str(tmp_path))
        assert result["settings"]["steps"] == steps


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="'sgd'"):
        reproduce(["sgd"])
    with pytest.raises(ValueError, match="restarts=0"):
        reproduce(["irm"], restarts=0)
    with pytest.raises(FileNotFoundError, match="MNIST is missing"):
        reproduce(["irm"], data_dir=str(tmp_path))
