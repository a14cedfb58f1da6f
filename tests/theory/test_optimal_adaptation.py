"""The optimal adaptation rate, against the minimum of the loss itself after one inner step."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_gp.functional.ntk import ntk_features
from lightning_gp.theory import network_adaptation_lr, optimal_adaptation_lr, optimal_adaptation_lr_from_kernels
from tests.cases import images, regression


def best_rate(features):
    """argmin over α of E ‖Φ w_1 − Φ a‖²/K from w = 0, the mean over a = ±e_i by autograd; a parabola in α."""
    K, d = features.shape[1:]

    def loss_after_a_step(alpha):
        losses = []
        for phi in features:
            for a in torch.eye(d, dtype=torch.float64):
                w = torch.zeros(d, dtype=torch.float64, requires_grad=True)
                gradient = torch.autograd.grad((phi @ (w - a)).square().sum() / K, w)[0]
                losses.append((phi @ (w.detach() - alpha * gradient - a)).square().sum() / K)
        return torch.stack(losses).mean()

    left, middle, right = (loss_after_a_step(alpha) for alpha in (-1.0, 0.0, 1.0))
    return (left - right) / (2 * (left - 2 * middle + right))


@pytest.mark.parametrize(("K", "d"), [(3, 5), (6, 4)])
def test_it_minimises_the_loss_after_one_step(K, d):
    features = torch.randn(4, K, d, dtype=torch.float64, generator=torch.Generator().manual_seed(K))
    found = optimal_adaptation_lr(features)
    torch.testing.assert_close(found, best_rate(features))
    assert isinstance(optimal_adaptation_lr(features.numpy()), (float, np.ndarray, np.generic))
    torch.testing.assert_close(optimal_adaptation_lr_from_kernels(features @ features.mT), found)
    # Rates scale like 1/H, also where H³ would overflow float32.
    torch.testing.assert_close(optimal_adaptation_lr(1e10 * features), found / 1e20)


def test_a_network_counts_as_its_linearisation():
    problem = regression(count=3)
    parameters = dict(problem.network.named_parameters())
    x, y = problem.environments.support

    def predict(parameters, x):
        return functional_call(problem.network, parameters, (x,))

    found = network_adaptation_lr(predict, problem.criterion, parameters, x, y)
    torch.testing.assert_close(found, optimal_adaptation_lr(ntk_features(predict, parameters, x)))


def test_any_criterion_counts_by_its_gauss_newton_matrix():
    problem = images(count=2)
    parameters = dict(problem.network.named_parameters())
    x, y = problem.environments.support
    squares, cubes = [], []
    for inputs, targets in zip(x, y, strict=True):
        rows = ntk_features(lambda p, x: functional_call(problem.network, p, (x,)), parameters, inputs[None])[0]
        probabilities = problem.network(inputs).softmax(1)
        blocks = [torch.diag(p) - torch.outer(p, p) for p in probabilities]
        H = rows.T @ torch.block_diag(*blocks) @ rows / len(targets)
        squares.append((H @ H).trace())
        cubes.append((H @ H @ H).trace())
    found = network_adaptation_lr(
        lambda p, x: functional_call(problem.network, p, (x,)), nn.functional.cross_entropy, parameters, x, y
    )
    torch.testing.assert_close(found, (sum(squares) / sum(cubes)).detach())


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.zeros(1, 2, 2), torch.full((1, 1, 1), float("nan"))]
)
def test_bad_features_are_refused(bad):
    with pytest.raises(ValueError, match=r"shape|features"):
        optimal_adaptation_lr(bad)


def test_bad_kernels_are_refused():
    with pytest.raises(ValueError, match=r"\(tasks, R, R\)"):
        optimal_adaptation_lr_from_kernels(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="curvatures"):
        optimal_adaptation_lr_from_kernels(torch.eye(2)[None], torch.eye(3)[None])
