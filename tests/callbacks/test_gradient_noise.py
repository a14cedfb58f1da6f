"""``GradientNoise`` against closed forms on linear regression, and against loops over plain gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gp import ERM, Environments
from lightning_gp.callbacks import GradientNoise
from lightning_gp.callbacks.gradient_noise import Noise, noise
from lightning_gp.functional.processes import Ranks
from lightning_gp.networks import SinusoidMLP
from lightning_gp.testing import on_processes
from tests.callbacks.callback_cases import Classifier, build, fit, sinusoid_data, sinusoid_maml

DOUBLE = {"precision": "64-true"}
ALONE = Ranks(SimpleNamespace(strategy=None, world_size=1, global_rank=0), torch.device("cpu"))


def flat(gradients):
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def by_loops(gradients, sizes):
    """tr Σ and ‖G‖² of a list of flat gradients, from the definitions."""
    count, total = len(gradients), sum(sizes)
    mean = sum(size * gradient for size, gradient in zip(sizes, gradients, strict=True)) / total
    scatter = [
        size * float((gradient - mean) @ (gradient - mean)) for size, gradient in zip(sizes, gradients, strict=True)
    ]
    variance = sum(scatter) / (count - 1)
    return variance, float(mean @ mean) - variance / total


def check(values, gradients, sizes, rel=1e-9):
    variance, signal = by_loops(gradients, sizes)
    assert values["gradients/variance"] == pytest.approx(variance, rel=rel)
    assert values["gradients/signal"] == pytest.approx(signal, rel=rel)
    assert values["gradients/snr"] == pytest.approx(signal / variance, rel=rel)
    scale = variance / signal if signal > 0 else math.inf
    assert values["gradients/noise_scale"] == pytest.approx(scale, rel=rel)


# -- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 5, [4, 4], [3, 2, 2, 1]], ids=str)
def test_both_estimates_are_unbiased_on_linear_regression(sizes):
    """x ~ N(0, 1), y = x·w* + σε: the gradient of (x·w − y)² is 2x(x·δ − σε), δ = w − w*."""
    generator, draws, dim, sigma = torch.Generator().manual_seed(0), 3000, 4, 0.7
    delta = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    x = torch.randn(draws, sum(sizes), dim, generator=generator, dtype=torch.float64)
    noises = sigma * torch.randn(draws, sum(sizes), generator=generator, dtype=torch.float64)
    each = 2 * x * (x @ delta - noises).unsqueeze(2)
    parts = torch.stack([part.mean(1) for part in each.split(sizes, 1)], 1)
    theta = {"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(dim - 1, dtype=torch.float64)}
    found = []
    for draw in parts:
        of = noise([{"a": draw[:, :1], "b": draw[:, 1:]}], [float(size) for size in sizes], theta, ALONE)
        found.append([of["a"].variance + of["b"].variance, of["a"].signal + of["b"].signal])
    found = torch.tensor(found, dtype=torch.float64)
    length = float(delta @ delta)
    truth = torch.tensor([4 * ((dim + 1) * length + dim * sigma**2), 4 * length], dtype=torch.float64)
    error = (found.mean(0) - truth) / (found.std(0) / draws**0.5)
    assert error.abs().max() < 4
    assert (found.std(0) / draws**0.5 < 0.06 * truth).all()  # so that the naive ‖ḡ‖² would be told apart
    mean = sum(size * parts[:, i] for i, size in enumerate(sizes)) / sum(sizes)
    assert mean.square().sum(1).mean() - truth[1] > 10 * found[:, 1].std() / draws**0.5


def test_two_opposite_gradients_have_no_signal_and_equal_ones_no_noise():
    theta = {"w": torch.zeros(2)}
    opposite = noise([{"w": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}], [1, 1], theta, ALONE)["w"]
    assert opposite == Noise(2.0, -1.0)
    assert (opposite.scale, opposite.ratio) == (math.inf, -0.5)
    equal = noise([{"w": torch.ones(2, 2)}], [1, 1], theta, ALONE)["w"]
    assert equal == Noise(0.0, pytest.approx(2.0))
    assert (equal.scale, equal.ratio) == (0.0, math.inf)
    none = noise([{"w": torch.zeros(2, 2)}], [1, 1], theta, ALONE)["w"]
    assert none.scale == math.inf
    assert math.isnan(none.ratio)


def test_small_differences_of_long_gradients_are_seen_in_float32():
    offsets = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64) * 1e-3
    rows = torch.tensor([[100.0, 0.0]], dtype=torch.float64) + offsets
    found = noise([{"w": rows.float()}], [1, 1], {"w": torch.zeros(2)}, ALONE)["w"]
    assert found.variance == pytest.approx(2e-6, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_in_nan_out(bad):
    found = noise([{"w": torch.tensor([[bad], [1.0]])}], [1, 1], {"w": torch.zeros(1)}, ALONE)["w"]
    assert all(math.isnan(each) for each in (*found, found.scale, found.ratio))


# -- in a training --------------------------------------------------------------------------------------------------


def test_environments_against_a_loop(tmp_path):
    module, callback = sinusoid_maml().double(), GradientNoise(groups=1)
    fit(tmp_path, module, sinusoid_data(dtype="float64"), [callback], **DOUBLE)
    gradients, names = [], [name for name, _ in module.network.named_parameters()]
    for batch in callback.batch.batches:
        for x, y in zip(*batch.query, strict=True):
            gradients.append(torch.autograd.grad(F.mse_loss(module.network(x), y), list(module.network.parameters())))
    assert len(gradients) == 8
    check(callback.values, [flat(each) for each in gradients], [1] * 8)
    groups = {name.partition(".")[0] for name in names}
    assert {key for key in callback.values if "snr/" in key} == {f"gradients/snr/{group}" for group in groups}
    for group in groups:
        own = [flat(g for name, g in zip(names, each, strict=True) if name.startswith(group)) for each in gradients]
        variance, signal = by_loops(own, [1] * 8)
        assert callback.values[f"gradients/snr/{group}"] == pytest.approx(signal / variance, rel=1e-9)


class Plain(Classifier):
    """No batch normalisation, whose statistics are those of the part."""

    def __init__(self):
        super().__init__(dropout=0.0, dtype=torch.float64)
        self.network[1] = nn.Identity()


def plain_data(batch_size=8):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(32, 6, generator=generator).double(), torch.randint(0, 3, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size)


def part_gradient(module, x, y):
    return flat(torch.autograd.grad(F.cross_entropy(module.network(x), y), list(module.parameters())))


@pytest.mark.parametrize(
    ("parts", "size", "sizes"),
    [(4, None, [2, 2, 2, 2]), (3, 13, [3, 3, 2, 2, 2, 1]), (50, None, [1] * 8), (1, 16, [8, 8])],
)
def test_a_stranger_is_measured_in_examples(tmp_path, parts, size, sizes):
    module, callback = build(Plain), GradientNoise(parts=parts, probe_size=size)
    fit(tmp_path, module, plain_data(), [callback], **DOUBLE)
    x, y = (torch.cat(each) for each in zip(*callback.batch.batches, strict=True))
    assert len(x) == sum(sizes)
    cut = zip(x.split(sizes), y.split(sizes), strict=True)
    check(callback.values, [part_gradient(module, *part) for part in cut], sizes)


def test_a_loss_per_example_and_single_examples_are_the_same(tmp_path):
    def losses(module, batch):
        return F.cross_entropy(module.network(batch[0]), batch[1], reduction="none")

    single, each = GradientNoise(parts=8), GradientNoise(loss_fn=losses, probe_size=8, prefix="each/")
    fit(tmp_path, build(Plain), plain_data(), [single, each], **DOUBLE)
    assert each.values == {f"each/{key}": pytest.approx(value, rel=1e-9) for key, value in single.values.items()}


def test_two_processes_have_the_environments_and_parts_of_both(tmp_path):
    def run(module, data, callback, processes):
        options = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto", **DOUBLE}
        fit(tmp_path, module, data, [callback], **options)
        return callback

    def environments(processes):
        return run(sinusoid_maml().double(), sinusoid_data(dtype="float64"), GradientNoise(), processes).values

    def both(rank):
        data = plain_data().dataset
        share = DataLoader(data, 4, sampler=DistributedSampler(data, 2, rank, shuffle=False))
        module = build(Plain)
        callback = run(module, share, GradientNoise(parts=2, probe_size=8), 2)
        return environments(2), callback.values, callback.batch.batches, module.state_dict()

    first, second = on_processes(both)
    assert first[:2] == second[:2]
    assert first[0] == pytest.approx(environments(1), rel=1e-9)
    module = Plain()
    module.load_state_dict(first[3])
    parts = [
        part_gradient(module, x, y)
        for (batch,) in (first[2], second[2])
        for x, y in zip(*(each.split(2) for each in batch), strict=True)
    ]
    check(first[1], parts, [2] * 4)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "data", "callback", "message"),
    [
        (Plain, plain_data, lambda: GradientNoise(parts=1), "parts=2 or more"),
        (Plain, lambda: plain_data(1), lambda: GradientNoise(), "a probe_size of several batches"),
        (Plain, lambda: plain_data(1), lambda: GradientNoise(probe_size=2, every_n_steps=1), "before the first"),
        (sinusoid_maml, sinusoid_data, lambda: GradientNoise(probe_size=1), "probe_size at least 2"),
    ],
)
def test_a_single_gradient_is_refused_before_the_first_step(tmp_path, make, data, callback, message):
    module = build(make)
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(ValueError, match=f"a single one.*{message}"):
        fit(tmp_path, module, data(), [callback()])
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


def test_single_environments_of_several_batches_are_enough(tmp_path):
    module, callback, x = ERM(SinusoidMLP([4]), criterion=F.mse_loss), GradientNoise(), torch.ones(1, 5, 1)
    fit(tmp_path, module, DataLoader([Environments((x, x))] * 3, batch_size=None), [callback])
    assert len(callback.batch.batches) == 3
    assert callback.values["gradients/variance"] == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_cut_is_refused_and_whole_batches_are_not(tmp_path):
    class Odd(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch["x"]).square().mean() * batch["scale"].sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    x = plain_data().dataset.tensors[0].float().split(4)
    loader = DataLoader([{"x": each, "scale": torch.ones(3)} for each in x], batch_size=None)
    with pytest.raises(ValueError, match=r"parts=4 cuts a batch of 4 examples, but .* \(3,\).*Take parts=1"):
        fit(tmp_path, Odd(), loader, [GradientNoise()])
    callback = GradientNoise(parts=1, probe_size=8)
    fit(tmp_path, Odd(), loader, [callback])
    assert callback.values["gradients/variance"] > 0


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="parts=0"):
        GradientNoise(parts=0)
    with pytest.raises(TypeError, match=r"parts=2\.5"):
        GradientNoise(parts=2.5)
    with pytest.raises(ValueError, match="groups=0"):
        GradientNoise(groups=0)
