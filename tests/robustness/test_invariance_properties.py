"""Whatever the number, sizes and order of environments: what holds for every algorithm of the invariance side.

Hypothesis draws the problems, always the same ones (``derandomize``), so that a failure can be repeated.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_gp import ERM, IBIRM, IGA, ANDMask, Environments, Fish, Fishr, GradientPenalty, GroupDRO, IRMv1, REx

BINARY = F.binary_cross_entropy_with_logits
few = settings(
    derandomize=True, deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KINDS = {
    "ERM": lambda network, weight: ERM(network, criterion=BINARY),
    "IRMv1": lambda network, weight: IRMv1(network, weight, criterion=BINARY),
    "REx": lambda network, weight: REx(network, weight, criterion=BINARY),
    "IGA": lambda network, weight: IGA(network, weight, criterion=BINARY),
    "Fishr": lambda network, weight: Fishr(network, weight, head="2", criterion=BINARY),
    "IBIRM": lambda network, weight: IBIRM(network, weight, head="2", criterion=BINARY),
    "ANDMask": lambda network, weight: ANDMask(network, min(1.0, 0.4 + weight / 10), criterion=BINARY),
    "GroupDRO": lambda network, weight: GroupDRO(network, weight, criterion=BINARY),
    "penalty +": lambda network, weight: GradientPenalty(network, weight, 1, criterion=BINARY),
    "penalty -": lambda network, weight: GradientPenalty(network, weight / 100, -1, criterion=BINARY),
}


class Problem(NamedTuple):
    """Environments, the layers of a network, and a weight."""

    examples: list[tuple[torch.Tensor, torch.Tensor]]
    hidden: int
    weight: float

    def network(self):
        torch.manual_seed(0)
        features = self.examples[0][0].shape[1]
        return nn.Sequential(nn.Linear(features, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1)).double()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count, features = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    size = st.integers(2, 6)
    sizes = [draw(size)] * count if draw(st.booleans()) else [draw(size) for _ in range(count)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    examples = []
    for each in sizes:
        x = torch.randn(each, features, generator=generator, dtype=torch.float64)
        examples.append((x, (torch.rand(each, 1, generator=generator) < 0.5).double()))
    return Problem(examples, draw(st.integers(1, 4)), draw(st.floats(0.1, 50.0)))


def trained(module, examples):
    """Loss and gradient of a step."""
    if len({len(y) for _, y in examples}) == 1:
        batch = Environments(tuple(torch.stack(each) for each in zip(*examples, strict=True)))
    else:
        batch = [Environments((x.unsqueeze(0), y.unsqueeze(0))) for x, y in examples]
    loss = module.training_loss(batch)
    gradient = torch.autograd.grad(loss, list(module.network.parameters()))
    return loss.detach(), torch.cat([each.flatten() for each in gradient])


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
@few
@given(problem=problems(), data=st.data())
def test_the_order_of_environments_and_copies_of_all_of_them_do_not_matter(name, problem, data):
    reference = trained(KINDS[name](problem.network(), problem.weight), problem.examples)
    shuffled = data.draw(st.permutations(problem.examples))
    same(trained(KINDS[name](problem.network(), problem.weight), shuffled), reference)
    same(trained(KINDS[name](problem.network(), problem.weight), problem.examples * 2), reference)


@pytest.mark.parametrize("name", KINDS)
@few
@given(problem=problems(), data=st.data())
def test_the_order_of_examples_does_not_matter(name, problem, data):
    reference = trained(KINDS[name](problem.network(), problem.weight), problem.examples)
    orders = [torch.tensor(data.draw(st.permutations(range(len(y))))) for _, y in problem.examples]
    mixed = [(x[order], y[order]) for (x, y), order in zip(problem.examples, orders, strict=True)]
    same(trained(KINDS[name](problem.network(), problem.weight), mixed), reference)


@pytest.mark.parametrize("name", ["REx", "IGA", "Fishr", "ANDMask", "GroupDRO"])
@few
@given(problem=problems())
def test_equal_environments_leave_joint_training(name, problem):
    equal = problem.examples[:1] * 3
    expected = trained(ERM(problem.network(), criterion=BINARY), equal)
    same(trained(KINDS[name](problem.network(), problem.weight), equal), expected)


@few
@given(problem=problems(), rate=st.floats(1e-3, 1.0))
def test_fish_is_the_mean_gradient_along_its_own_path(problem, rate):
    module = Fish(problem.network(), rate, criterion=BINARY)
    network, examples = problem.network(), problem.examples
    losses, total = [], 0.0
    for position in module.order(len(examples)):
        x, y = examples[position]
        losses.append(BINARY(network(x), y))
        gradients = torch.autograd.grad(losses[-1], list(network.parameters()))
        total = total + torch.cat([each.flatten() for each in gradients])
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.data -= rate * gradient
    same(trained(module, examples), (torch.stack(losses).mean().detach(), total / len(examples)))
