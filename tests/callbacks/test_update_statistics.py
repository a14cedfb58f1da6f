"""``UpdateStatistics`` against closed forms of gradient descent, and against copies that a callback beside it keeps."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gp.callbacks import UpdateStatistics
from lightning_gp.callbacks.update_statistics import Begun
from tests.callbacks.callback_cases import Classifier, Manual, assert_same_training, build, examples, fit, loaders

DOUBLE = {"precision": "64-true"}
KEYS = ("norm", "parameter_norm", "ratio", "cosine")


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def statistics(before, after, gradient):
    update = flat(after) - flat(before)
    norm, length, slope = float(update.norm()), float(flat(before).norm()), float(flat(gradient).norm())
    cosine = -float(update @ flat(gradient)) / (norm * slope)
    return dict(zip(KEYS, (norm, length, norm / length, cosine), strict=True))


def approx(expected):
    return {f"updates/{key}": pytest.approx(value, rel=1e-9) for key, value in expected.items()}


class Small(pl.LightningModule):
    """One optimizer of any kind on a network of two layers."""

    def __init__(self, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)
        self.optimizer, self.log_of_steps = optimizer, []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.second(self.first(batch[0]).tanh()), batch[1])

    def trained(self):
        return list(self.parameters())

    def on_before_optimizer_step(self, optimizer):
        copies = [p.detach().clone() for p in self.trained()], [p.grad.detach().clone() for p in self.trained()]
        self.log_of_steps.append(copies)

    def configure_optimizers(self):
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


def double(batch_size=8):
    return loaders(batch_size, dtype=torch.float64)[0]


def test_gradient_descent_has_a_closed_form(tmp_path):
    module, callback = build(Small).double(), UpdateStatistics(groups=1)
    fit(tmp_path, module, double(), [callback], **DOUBLE)
    weights, gradients = module.log_of_steps[-1]
    for end, part in (("", slice(0, 4)), ("/first", slice(0, 2)), ("/second", slice(2, 4))):
        slope, length = float(flat(gradients[part]).norm()), float(flat(weights[part]).norm())
        expected = (0.1 * slope, length, 0.1 * slope / length, 1)
        assert [callback.values[f"updates/{key}{end}"] for key in KEYS] == pytest.approx(expected, rel=1e-12)


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    # Its foreach form adds the buffer to .grad in place.
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
}


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1e-2}], ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_against_copies(tmp_path, kind, options):
    module, callback = build(Small, OPTIMIZERS[kind]).double(), UpdateStatistics()
    fit(tmp_path, module, double(), [callback], **options, **DOUBLE)
    assert len(module.log_of_steps) == (4 if "accumulate_grad_batches" in options else 8)
    weights, gradients = module.log_of_steps[-1]
    assert callback.values == approx(statistics(weights, module.parameters(), gradients))


def test_of_a_closure_the_first_evaluation_counts(tmp_path):
    module, callback = build(Small, lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=4)).double(), UpdateStatistics()
    module.on_train_batch_start = lambda *args: module.log_of_steps.clear()
    fit(tmp_path, module, double(), [callback], **DOUBLE)
    (weights, gradients), *_, _ = module.log_of_steps  # at least two
    assert callback.values == approx(statistics(weights, module.parameters(), gradients))


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_every_n_steps_takes_the_nth_step(tmp_path, options):
    module, callback, values = build(Small, OPTIMIZERS["Adam"]).double(), UpdateStatistics(every_n_steps=3), []
    module.on_train_batch_end = lambda *args: values.append((module.global_step, dict(callback.values)))
    fit(tmp_path, module, double(), [callback], max_epochs=4, **options, **DOUBLE)
    steps = [*module.log_of_steps, (list(module.parameters()), None)]
    for n in range(3, len(module.log_of_steps) + 1, 3):
        expected = statistics(steps[n - 1][0], steps[n][0], steps[n - 1][1])
        assert next(found for step, found in values if step == n) == approx(expected)


def test_copies_are_made_only_where_a_value_is_due(tmp_path, monkeypatch):
    made, init = [], Begun.__init__
    monkeypatch.setattr(Begun, "__init__", lambda self, parameters: (made.append(1), init(self, parameters))[1])
    fit(tmp_path, build(Small), loaders()[0], [UpdateStatistics(every_n_steps=4)], max_epochs=4)
    assert len(made) == 5  # of 16 steps: the 4th, 8th, … and the first, of which it is not known how many follow
    made.clear()
    fit(tmp_path, build(Small), loaders()[0], [UpdateStatistics(every_n_epochs=2)], max_epochs=4)
    assert len(made) == 8


class Two(Manual):
    """The torch optimizers themselves, or Lightning's, the first several times a batch, or the second now and then."""

    def __init__(self, raw=False, times=1, every=1):
        super().__init__()
        self.raw, self.times, self.every, self.kept = raw, times, every, {}

    def training_step(self, batch, batch_idx):
        for i, optimizer in enumerate(self.optimizers(use_pl_optimizer=not self.raw)):
            for _ in range(self.times if i == 0 else int((batch_idx + 1) % self.every == 0)):
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(self.b(self.a(batch[0]).tanh()), batch[1]))
                own = list((self.a, self.b)[i].parameters())
                before, gradients = [p.detach().clone() for p in own], [p.grad.clone() for p in own]
                optimizer.step()
                self.kept["ab"[i]] = before, [p.detach().clone() for p in own], gradients
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)  # no part of a step


@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 1}, {"every_n_steps": 4}], ids=str)
@pytest.mark.parametrize("options", [{}, {"raw": True}, {"times": 2}, {"every": 2}], ids=str)
def test_two_optimizers_stepped_by_hand(tmp_path, options, cadence):
    module, callback = build(Two, **options).double(), UpdateStatistics(groups=1, **cadence)
    fit(tmp_path, module, double(), [callback], **DOUBLE)  # 16, 24 or 12 steps
    together = [[*a, *b] for a, b in zip(module.kept["a"], module.kept["b"], strict=True)]
    expected = statistics(*together)
    for name in "ab":
        expected |= {f"{key}/{name}": value for key, value in statistics(*module.kept[name]).items()}
    assert callback.values == approx(expected)


def test_frozen_parameters_are_left_out_and_those_without_gradient_are_not(tmp_path):
    class Frozen(Small):
        def __init__(self):
            super().__init__(lambda p: torch.optim.SGD([*p, *self.first.parameters()], lr=0.1))
            self.first.requires_grad_(False)
            self.unused = nn.Parameter(torch.full((5,), 2.0))

        def trained(self):
            return list(self.second.parameters())

    module, callback = build(Frozen).double(), UpdateStatistics(groups=1)
    fit(tmp_path, module, double(), [callback], **DOUBLE)
    values, (weights, gradients) = callback.values, module.log_of_steps[-1]
    assert {key for key in values if "ratio/" in key} == {"updates/ratio/second", "updates/ratio/unused"}
    assert values["updates/norm"] == pytest.approx(0.1 * float(flat(gradients).norm()), rel=1e-9)
    assert values["updates/parameter_norm"] == pytest.approx(math.hypot(flat(weights).norm(), 20**0.5), rel=1e-9)
    assert values["updates/norm/unused"] == 0
    assert math.isnan(values["updates/cosine/unused"])


def test_sparse_gradients_and_complex_and_half_parameters():
    embedding = nn.Embedding(10, 3, sparse=True)
    wave = nn.Parameter(torch.randn(4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))
    half = nn.Parameter(torch.full((3,), 300.0, dtype=torch.float16))
    parameters = {"e": embedding.weight, "w": wave, "h": half}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    (embedding(torch.tensor([1, 1, 4])).square().sum() + wave.abs().square().sum() + half.sum()).backward()
    begun = Begun(parameters)
    optimizer.step()
    taken = begun.taken()
    gradients = [embedding.weight.grad.to_dense(), torch.view_as_real(wave.grad), half.grad.float()]
    for row, weight, g in zip(taken.rows.T, begun.weights, gradients, strict=True):
        expected = torch.stack([0.5 * g.norm(), weight.norm(), g.norm(), -0.5 * g.square().sum()])
        assert torch.allclose(row, expected, rtol=1e-5)


def test_nothing_waits_for_the_device():
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    module = build(Small)
    module.training_step(examples(8), 0).backward()
    with Watch():
        Begun(dict(module.named_parameters())).taken()
    assert any("_foreach_norm" in name for name in names)
    assert not [name for name in names if "_local_scalar_dense" in name or "nonzero" in name]


def test_a_step_that_the_scaler_skips_is_of_length_0(tmp_path):
    class Overflow(Small):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx == 3 else 1.0)

    values = []
    for cls in (Small, Overflow):
        plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        module, callback = build(cls), UpdateStatistics()
        fit(tmp_path, module, loaders()[0], [callback], max_epochs=1, plugins=[plugin])
        values.append(callback.values)
    assert values[0]["updates/cosine"] == pytest.approx(1, rel=1e-5)
    assert values[1]["updates/norm"] == values[1]["updates/ratio"] == 0
    assert values[1]["updates/parameter_norm"] == values[0]["updates/parameter_norm"]
    assert math.isnan(values[1]["updates/cosine"])


@pytest.mark.parametrize("cls", [Classifier, Manual])
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 2}], ids=str)
def test_training_is_bitwise_the_same(tmp_path, cls, cadence):
    without, attached, callback = build(cls), build(cls), UpdateStatistics(groups=1, **cadence)
    fit(tmp_path, without, loaders())
    fit(tmp_path, attached, loaders(), [callback])
    assert_same_training(without, attached)
    assert callback.values
    assert not callback._handles


def test_a_batch_that_training_passes_over_is_no_step(tmp_path):
    class Skipping(Small):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 3 else super().training_step(batch, batch_idx)

        def trained(self):
            return [parameter for parameter in self.parameters() if parameter.grad is not None]

    module, callback = build(Skipping).double(), UpdateStatistics()
    fit(tmp_path, module, double(), [callback], **DOUBLE)
    weights, gradients = module.log_of_steps[-2]
    assert callback.values == approx(statistics(weights, module.parameters(), gradients))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="groups=0"):
        UpdateStatistics(groups=0)
    with pytest.raises(ValueError, match="leave loss_fn out"):
        UpdateStatistics(loss_fn=print)
