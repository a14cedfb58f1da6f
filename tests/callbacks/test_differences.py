"""``HessianEigenvalues(products="differences")`` on kernels without a double backward, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.callbacks import HessianEigenvalues
from tests.callbacks.test_trainers_of_today import ROWS, Attention, Row, by_hand, fit


class Flash(torch.autograd.Function):
    """Attention whose backward is written out, and not differentiable."""

    @staticmethod
    def forward(ctx, query, key, value):
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        query, key, value, weights = ctx.saved_tensors
        inner = gradient @ value.transpose(-1, -2)
        scores = weights * (inner - (weights * inner).sum(-1, keepdim=True)) / query.shape[-1] ** 0.5
        return scores @ key, scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ gradient


class FlashAttention(Attention):
    """The network of ``Attention`` by that kernel."""

    def forward(self, x):
        query, key, value = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        mixed = Flash.apply(query, key, value).transpose(1, 2).flatten(2)
        return self.head(torch.tanh(x + self.out(mixed)).mean(1))


@pytest.mark.parametrize("name", ["plain", "accumulated", "no double backward"])
def test_values_are_those_of_the_dense_hessian_and_training_is_bitwise_the_same(name):
    row = Row(FlashAttention) if name == "no double backward" else ROWS[name]
    bare, probe = fit(row), HessianEigenvalues(products="differences")
    module = fit(row, probe)
    for mine, trained in zip(bare.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, trained)
        assert mine.grad is None or torch.equal(mine.grad, trained.grad)
    _, hessian = by_hand(Row(Attention) if name == "no double backward" else row, module)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    for i in (1, 2):
        assert probe.values[f"differences/eigenvalue_{i}"] == pytest.approx(float(exact[i - 1]), rel=1e-3)
        assert probe.values[f"differences/residual_{i}"] < 0.03 * float(exact[0])
    assert probe.values["differences/converged"] == 1
    assert not any(key.startswith("curvature/") for key in probe.values)


def test_exact_products_refuse_that_kernel():
    with pytest.raises(RuntimeError, match=r"no double backward"):
        fit(Row(FlashAttention), HessianEigenvalues())


def test_relu_is_nan_and_dropout_draws_the_same_masks():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(40, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2))

        def forward(self, x):
            return self.layers(x)

    def kinks():
        return nn.Sequential(nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    probe = HessianEigenvalues(products="differences")
    fit(Row(kinks), probe)
    assert probe.values["differences/converged"] == 0
    assert probe.values["differences/eigenvalue_1"] != probe.values["differences/eigenvalue_1"]  # NaN
    exact, probe = HessianEigenvalues(tol=1e-6), HessianEigenvalues(products="differences")
    fit(Row(Dropped), exact)
    fit(Row(Dropped), probe)
    assert probe.values["differences/eigenvalue_1"] == pytest.approx(exact.values["curvature/eigenvalue_1"], rel=1e-3)


def test_a_loss_function_of_several_losses():
    def each(module, batch):
        return F.cross_entropy(module.network(batch[0]), batch[1], reduction="none")

    row, probe = ROWS["plain"], HessianEigenvalues(products="differences", loss_fn=each)
    _, hessian = by_hand(row, fit(row, probe))
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    assert probe.values["differences/eigenvalue_1"] == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"trace": True}, {"density": True}, {"groups": 1}, {"preconditioned": True}, {"objective": "training"}]
)
def test_what_needs_exact_products_is_refused(options):
    with pytest.raises(ValueError, match=rf"without {next(iter(options))}.*products='exact'"):
        HessianEigenvalues(products="differences", **options)
