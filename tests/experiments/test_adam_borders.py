"""Borders of a map with Adam outside, against their closed forms on a quadratic loss."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import MAML, Environments
from lightning_gp.experiments.adam_borders import edge_at_start, explained, first_step_border, followed, within_a_step
from lightning_gp.trainability import TrainabilityMap, plot_map

BETAS = [0.5, 1.0, 5.0, 20.0, 100.0]


def quadratic():
    """L = w² from w = 0.7."""
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, 0.7)
    return MAML(network, criterion=F.mse_loss)


def trainability(**options):
    x = torch.ones(1, 4, 1, dtype=torch.float64)
    data = Environments((x, 0 * x), (x, 0 * x))
    settings = {"iterations": 500, "optimizer": "adam", "divergence": 100.0, **options}
    return TrainabilityMap(quadratic(), data, [1e-3, 1e-2], BETAS, **settings)


def test_first_step_moves_by_the_rate():
    """((w − β)/w)² = D at β = w(1 + √D)."""
    train = trainability().trainer(0)
    assert first_step_border(train, 0.0, BETAS) == pytest.approx(0.7 * 11, rel=0.01)
    assert first_step_border(train, 0.0, BETAS[:3]) == math.inf
    assert first_step_border(train, 0.0, [50.0]) == 50.0


def test_edge_is_that_of_the_moments_at_the_weights():
    """v̂ = g² and H = 2, so the curvature is 2/|g| = 1/w, and 38 w would be critical, were m not divided by 1 − β₁²⁰.

    MAML's factor (1 − 2α)² is in H and in g.
    """
    train = trainability().trainer(0)
    for alpha in (0.0, 0.01):
        assert edge_at_start(train, alpha) == pytest.approx(38 * 0.7 * (1 - 0.9**20), rel=1e-4)
    assert torch.equal(train.parameters[0], train.initial[0])


def test_a_training_that_is_followed_is_one_of_torchs():
    train = trainability().trainer(0)
    found = followed(train, 0.0, 0.1, 30)
    weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    optimizer, losses = torch.optim.Adam([weight], lr=0.1), []
    for _ in range(31):
        optimizer.zero_grad()
        losses.append(weight.square())
        losses[-1].backward()
        optimizer.step()
    assert found["last_loss"] == pytest.approx(losses[-1].item())
    assert (found["largest_loss"], found["at_iteration"]) == (pytest.approx(0.49), 0)
    assert found["edge"].keys() == {1, 5, 20}


@pytest.mark.slow
def test_explained_counts_what_is_within_a_step():
    assert within_a_step(BETAS, 4.0, 10.0)
    assert not within_a_step(BETAS, 0.7, 10.0)
    mapped = trainability(iterations=300)
    result = mapped.run(progress=False)
    lines, numbers = explained(mapped, result)
    assert numbers["border_within_a_step_at"]["first step of Adam beyond the bound"] == [1e-3, 1e-2]
    assert numbers["first_cell_beyond_the_border"]["0.001"] == "β = 20 ended beyond the bound at iteration 1"
    labels = [text.get_text() for text in plot_map(result, lines=lines).axes[0].get_legend().get_texts()]
    assert set(labels) >= {label for label, _ in lines}
    with pytest.raises(ValueError, match="'mine' has 1 values, and the map 2 inner rates"):
        plot_map(result, lines=[("mine", [0.1])])
