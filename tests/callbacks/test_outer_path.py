"""``PhaseAmplitudeConsistency`` along the path of the parameters during an epoch, also through a checkpoint."""

import math
from itertools import pairwise

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gp.callbacks import PhaseAmplitudeConsistency, outer_path
from tests.callbacks.callback_cases import Classifier, Manual, build, examples, fit, loaders, trainer

DOUBLE = {"precision": "64-true"}


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_consistencies_of_the_outer_path(tmp_path):
    module, callback = build(Classifier, dtype=torch.float64), PhaseAmplitudeConsistency()
    path, norms = [], []
    module.on_before_optimizer_step = lambda optimizer: norms.append(flat([p.grad for p in module.parameters()]).norm())
    module.on_train_batch_start = lambda batch, index: path.append(flat(module.parameters()).detach().clone())
    fit(tmp_path, module, loaders(dtype=torch.float64), [callback], max_epochs=1, **DOUBLE)
    path.append(flat(module.parameters()).detach())
    lengths = sum((b - a).norm() for a, b in pairwise(path))
    phase = (lengths / (path[-1] - path[0]).norm()).item()
    assert callback.values["linearity/phase_consistency"] == pytest.approx(phase, rel=1e-6)
    amplitude = (sum(norms[1:]) / 3 / norms[0]).item()
    assert callback.values["linearity/loss_gradient_ratio"] == pytest.approx(amplitude, rel=1e-6)
    assert callback.values["linearity/amplitude_consistency"] == callback.values["linearity/loss_gradient_ratio"]


def resumed_in_the_middle(tmp_path, make, **options):
    """The values at the end of two epochs of 4 batches, uninterrupted and resumed from a checkpoint after batch 6."""
    # All batches are alike: where a resumed epoch starts over in a loader is Lightning's affair.
    batches = DataLoader([examples(8)] * 4, batch_size=None)
    whole, rest = PhaseAmplitudeConsistency(**options), PhaseAmplitudeConsistency(**options)
    # Two optimizers take two steps per batch.
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=12 if make is Manual else 6)
    fit(tmp_path, build(make), batches, [whole, saving], enable_checkpointing=True)
    (middle,) = tmp_path.glob("*.ckpt")
    torch.load(middle, weights_only=True)
    trainer(tmp_path, [rest]).fit(build(make), batches, ckpt_path=middle)
    return whole.values, rest.values


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 8}])
@pytest.mark.parametrize("make", [Classifier, Manual])
def test_the_path_goes_on_after_a_checkpoint_in_the_middle_of_an_epoch(tmp_path, monkeypatch, make, options):
    monkeypatch.setattr(F, "dropout", lambda x, *_: x)  # a checkpoint does not hold the random state
    whole, rest = resumed_in_the_middle(tmp_path, make, **options)
    names = ("phase_consistency", "loss_gradient_ratio", "amplitude_consistency")
    assert whole.keys() == {f"linearity/{name}" for name in names}
    assert rest == whole


def test_a_path_too_large_for_a_checkpoint_begins_where_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda x, *_: x)
    monkeypatch.setattr(outer_path, "MAX_SAVED_BYTES", 100)
    whole, rest = resumed_in_the_middle(tmp_path, Classifier)
    assert rest["linearity/phase_consistency"] >= 1
    assert rest != whole


def test_no_path_is_saved_at_the_end_of_an_epoch(tmp_path):
    callback = PhaseAmplitudeConsistency()
    fit(tmp_path, build(Classifier), loaders(), [callback])
    assert callback.state_dict()["path"] == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_path_that_is_not_finite_has_no_phase_consistency(bad):
    weight = torch.zeros(2)
    path = outer_path.OuterPath([weight])
    for value in (bad, 1.0):
        weight.fill_(value)
        path.add_step()
    assert math.isnan(path.consistencies()["phase_consistency"])
