"""Sinusoid and linear environments."""

import numpy as np
import pytest
import torch

from lightning_gp.datamodules import LinearRegressionDataModule, SinusoidDataModule
from lightning_gp.environments import check


def draw(data, count=64, split="train"):
    return check(data.episodes(split).__getitems__(range(count)))


def test_support_and_query_lie_on_one_sinusoid_in_range():
    (xs, ys), (xq, yq) = draw(SinusoidDataModule(shots=8, queries=5, dtype="float64"))
    assert xs.shape == (64, 8, 1)
    assert yq.shape == (64, 5, 1)
    assert xs.dtype == ys.dtype == torch.float64
    assert float(xs.min()) >= -5
    assert float(xs.max()) <= 5
    for e in range(64):  # A sin(x − φ) = a sin x + b cos x: solve for (a, b) on the support set, predict the query set
        basis = [torch.cat([x[e].sin(), x[e].cos()], 1) for x in (xs, xq)]
        a, b = torch.linalg.lstsq(basis[0], ys[e]).solution.flatten()
        torch.testing.assert_close(basis[1] @ torch.stack([a, b])[:, None], yq[e], rtol=0, atol=1e-8)
        amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
        assert 0.1 - 1e-6 <= amplitude <= 5 + 1e-6
        assert -1e-6 <= phase <= torch.pi + 1e-6


def test_parameters_fill_their_ranges():
    (x, y), _ = draw(LinearRegressionDataModule(shots=2, scale=(1, 3), bias=(-1, 0), dtype="float64"), 2000)
    slope = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    bias = y[:, 0] - slope * x[:, 0]
    for values, low, high in ((slope, 1, 3), (bias, -1, 0), (x, -5, 5)):
        assert low - 1e-6 <= float(values.min()) < low + 0.05
        assert high - 0.05 < float(values.max()) <= high + 1e-6
        assert abs(float(values.mean()) - (low + high) / 2) < 0.15


def test_noise_is_gaussian_and_leaves_the_inputs_alone():
    clean, noisy = (draw(SinusoidDataModule(noise=noise, dtype="float64"), 2000) for noise in (0.0, 0.5))
    assert torch.equal(clean.support[0], noisy.support[0])
    errors = torch.cat([(noisy[i][1] - clean[i][1]).flatten() for i in (0, 1)]).numpy() / 0.5
    assert abs(errors.mean()) < 0.03
    assert abs(errors.std() - 1) < 0.03
    assert abs((np.abs(errors) < 1).mean() - 0.6827) < 0.01


def test_float32_is_the_default_and_is_the_rounded_float64():
    single, double = (draw(SinusoidDataModule(dtype=dtype)) for dtype in ("float32", "float64"))
    assert draw(SinusoidDataModule()).support[0].dtype == torch.float32
    for a, b in zip(single.support + single.query, double.support + double.query, strict=True):
        assert torch.equal(a, b.float())


def test_same_data_makes_query_the_support():
    support, query = draw(LinearRegressionDataModule(same_data=True))
    assert torch.equal(support[0], query[0])
    assert torch.equal(support[1], query[1])
    support, query = draw(LinearRegressionDataModule(same_data=False, queries=3))
    assert query[0].shape == (64, 3, 1)
    assert not torch.equal(support[0][:, :3], query[0])


def test_fixed_repeats_the_training_environments_only():
    data = LinearRegressionDataModule(fixed=True, environments_per_batch=2)
    (x, _), _ = draw(data, 6)
    assert torch.equal(x[:2], x[2:4])
    assert not torch.equal(x[0], x[1])
    (x, _), _ = draw(data, 6, "val")
    assert not torch.equal(x[:2], x[2:4])


def test_regression_has_no_ways():
    assert SinusoidDataModule().ways is None


@pytest.mark.parametrize("module", [SinusoidDataModule, LinearRegressionDataModule])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots=0 must be"),
        ({"queries": -2}, "queries=-2 must be"),
        ({"noise": -0.1}, "noise=-0.1 must be"),
        ({"noise": float("nan")}, "noise=nan must be"),
        ({"x_range": (5, -5)}, r"x_range=\(5, -5\) is no range"),
        ({"dtype": "float16"}, "dtype='float16' is unknown; use one of float32, float64"),
    ],
)
def test_bad_arguments_are_refused(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**arguments)
