"""Recorded operations give bitwise what the objective gives, and what cannot be recorded is left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.environments import Environments
from lightning_gp.modules import LIL, MAML, GradientPenalty, IRMv1
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import BatchStream, CellTrainer, recording
from lightning_gp.trainability.objective import rate_of, value_and_gradients
from lightning_gp.trainability.recording import recorded

RECORD_AT = 3


@pytest.fixture(autouse=True)
def early(monkeypatch):
    monkeypatch.setattr(recording, "RECORD_AT", RECORD_AT)


def regression(count, seed=0, points=5):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.rand(2, count, points, 1, generator=generator)
    return [Environments((x, torch.sin(x)), (z, torch.sin(z)))]


def classes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.rand(2, count, 4, 3, generator=generator)
    y = torch.tensor([0, 1, 0, 1]).expand(count, 4)
    return [Environments((x, y), (z, y))]


def classifier():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def is_recorded(evaluate):
    """Whether the last recording succeeded; fails if none was tried."""
    return list(evaluate.recordings.values())[-1] is not None


@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (lambda: MAML(SinusoidMLP(), criterion=F.mse_loss), regression),
        (lambda: MAML(SinusoidMLP(), inner_steps=3, criterion=F.mse_loss), regression),
        (lambda: MAML(SinusoidMLP(), learn_inner_lr=True, criterion=F.mse_loss), regression),
        (lambda: LIL(classifier()), classes),
        (lambda: LIL(classifier(), first_order=True), classes),
        (lambda: GradientPenalty(SinusoidMLP(), criterion=F.mse_loss), regression),
        (lambda: IRMv1(SinusoidMLP(), criterion=F.mse_loss), regression),
    ],
)
def test_bitwise_the_same_at_all_rates_and_weights(build, draw):
    torch.manual_seed(0)
    module = build().train()
    evaluate = value_and_gradients(module, rate_of(module))
    for rate in (0.0, 0.03, 0.2):
        module.rate().set(rate)
        for call in range(RECORD_AT + 4):
            batch = draw(3, seed=call)
            loss, gradients = evaluate(batch)
            expected, expected_gradients = evaluate.evaluate(batch)
            assert torch.equal(loss, expected)
            assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))
            with torch.no_grad():
                torch._foreach_add_(list(module.parameters()), gradients, alpha=-1e-3)
        assert is_recorded(evaluate)
    assert len(evaluate.recordings) == 3


def test_each_layout_has_its_recording():
    module = MAML(SinusoidMLP(hidden=(4,)), criterion=F.mse_loss)
    evaluate = value_and_gradients(module, rate_of(module))
    (first,), (other,) = regression(3), regression(3, seed=1, points=7)
    shared = Environments(first.support, first.support)
    sliced = Environments((other.support[0][:, :5], other.support[1][:, :5]), first.query)
    for batch in (first, other, shared, sliced):
        for _ in range(RECORD_AT + 3):
            loss, gradients = evaluate([batch])
        expected, expected_gradients = evaluate.evaluate([batch])
        assert torch.equal(loss, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))
    assert len(evaluate.recordings) == 4
    assert None not in evaluate.recordings.values()


def looks_at_values(prediction, target):
    return F.mse_loss(prediction, target) * (2.0 if target.max() > 0.5 else 1.0)


def takes_values_out(prediction, target):
    return F.mse_loss(prediction, target) * float(target.numpy().max())


@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (lambda: MAML(nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)), criterion=F.mse_loss), 3),
        (lambda: MAML(SinusoidMLP(hidden=(4,)), criterion=F.mse_loss, vectorize=2), 3),
        (lambda: MAML(SinusoidMLP(hidden=(4,)), criterion=looks_at_values), 1),
        (lambda: MAML(SinusoidMLP(hidden=(4,)), criterion=takes_values_out), 1),
    ],
)
def test_what_cannot_be_recorded_is_evaluated(build, draw):
    torch.manual_seed(0)
    module = build().train()
    evaluate = value_and_gradients(module, rate_of(module))
    for call in range(RECORD_AT + 5):
        batch = regression(draw, seed=call)
        torch.manual_seed(call)
        loss, _ = evaluate(batch)
        torch.manual_seed(call)
        assert torch.equal(loss, evaluate.evaluate(batch)[0])
    assert not is_recorded(evaluate)


class Scaled(nn.Linear):
    """Depends on a number that is no tensor."""

    factor = 1.0

    def forward(self, x):
        return super().forward(x) * self.factor


def test_objective_that_changes_is_an_error():
    network = Scaled(1, 1)
    trainer = CellTrainer(MAML(network, criterion=F.mse_loss), BatchStream(regression(3)))

    def change(iteration, loss):
        network.factor = 2.0 if iteration == RECORD_AT + 5 else network.factor

    with pytest.raises(RuntimeError, match="depends on more than parameters, batch and α"):
        trainer(0.01, 0.01, RECORD_AT + 9, on_loss=change)


def test_recorded_leaves_out_only_what_changes_nothing():
    x, n = torch.arange(6.0).reshape(2, 3), torch.arange(3)

    def function(x, n):
        return x.view(2, 3).expand(2, 3).mul(1) + x.t().reshape(2, 3), (n * 1.0).sqrt(), x[:2].detach() * 2

    module = recorded(function, [x, n])
    used = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert not {"aten.expand.default", "aten.slice.Tensor", "aten.detach.default"} & set(used)
    other, m = torch.rand(2, 3), torch.tensor([4, 9, 25])
    assert all(torch.equal(a, b) for a, b in zip(module(other, m), function(other, m), strict=True))
