"""The peak of what a computation's tensors take, against sums by hand."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lightning_gp import MAML, Environments, ImplicitMAML
from lightning_gp.networks import SinusoidMLP
from lightning_gp.runs.memory import peak_tensor_bytes

FLOATS = 4 * 1000


def test_storages_count_once_and_until_they_are_freed():
    x = torch.ones(1000)

    def views():
        first = x * 2
        view = first.view(10, 100).t()
        del first
        second = x.view(10, 100) + view.t()  # two alive: that of the view, and this
        del view
        return second * second  # two again

    assert peak_tensor_bytes(views) == 2 * FLOATS
    assert peak_tensor_bytes(lambda: x.view(10, 100).t()) == 0
    assert peak_tensor_bytes(lambda: x.clone().mul_(2).add_(1)) == FLOATS


@pytest.mark.parametrize("length", [2, 5])
def test_what_autograd_keeps_is_counted(length):
    x = torch.ones(1000, requires_grad=True)

    def forward():
        value = x
        for _ in range(length):
            value = value.exp()  # keeps its result
        return value.sum()

    assert peak_tensor_bytes(forward) == length * FLOATS + 4
    with torch.no_grad():
        assert peak_tensor_bytes(forward) == 2 * FLOATS


def test_implicit_maml_takes_the_same_for_any_number_of_inner_steps():
    x = torch.linspace(-1, 1, 40).reshape(4, 10, 1)
    batch = Environments(support=(x, x), query=(x, x))

    def peak(kind, steps):
        module = kind(SinusoidMLP(), inner_lr=0.01, inner_steps=steps, criterion=F.mse_loss)
        step = partial(module.training_loss, batch)
        step()
        return peak_tensor_bytes(lambda: step().backward())

    assert peak(ImplicitMAML, 3) == peak(ImplicitMAML, 9)
    assert peak(MAML, 9) > 1.5 * peak(MAML, 3)
