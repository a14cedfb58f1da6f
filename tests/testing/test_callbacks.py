"""Every callback of the package keeps the promises that are shipped for others, and broken ones are told apart."""

from __future__ import annotations

import os

import pytest
import torch

from lightning_gp.callbacks import Probe
from lightning_gp.callbacks.measurement import Report
from lightning_gp.contracts import Key
from lightning_gp.testing import check_callback
from lightning_gp.testing.probes import probe_classes

PROMISES = {"untouched", "keys", "processes", "resumed", "pickled"}


@pytest.mark.filterwarnings("ignore:.*critical rate.*")
@pytest.mark.parametrize("kind", probe_classes())
def test_every_callback_keeps_its_promises(kind):
    done = check_callback(lambda: kind(prefix="mine/"), ignore=["curvature/products", "curvature/residual_<i>"])
    assert set(done) == PROMISES
    assert not done.skipped


class Loss(Probe):
    """Logs the mean loss; {keys}"""

    keys = (Key("mine/loss", "ℝ", "the mean loss"),)

    def measure(self, measurement):
        loss = float(measurement.mean_loss(measurement.loss.parameters()).detach())
        return Report({"mine/loss": measurement.ranks.totals(loss)[0]})


class Changing(Loss):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        with torch.no_grad():
            next(pl_module.parameters()).mul_(1.0001)


class Drawing(Loss):
    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        torch.rand(1)


class Logging(Loss):
    """Writes over what the module logs."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/loss", 3.0)


class Undeclared(Loss):
    def measure(self, measurement):
        return Report({**super().measure(measurement).values, "mine/loss_2": 1.0})


class Silent(Loss):
    def measure(self, measurement):
        return Report()


class OwnShare(Loss):
    """Forgets the other processes."""

    def measure(self, measurement):
        return Report({"mine/loss": float(measurement.mean_loss(measurement.loss.parameters()).detach())})


class Pid(Loss):
    """Differs from process to process."""

    def measure(self, measurement):
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return Report({"mine/loss": super().measure(measurement).values["mine/loss"] + rank})


class Forgetful(Loss):
    """Counts its steps where no checkpoint sees it."""

    def begin(self):
        super().begin()
        self.count = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.count += 1

    def measure(self, measurement):
        return Report({"mine/loss": float(self.count)})


class Holding(Loss):
    def __init__(self, **options):
        super().__init__(**options)
        self.transform = lambda value: value


BROKEN = {
    Changing: ("untouched", r"training ends with other weights: \d+ of \d+ tensors, by up to"),
    Drawing: ("untouched", "the random numbers after training are others"),
    Logging: ("untouched", "val/loss is 3.0 and not"),
    Undeclared: ("keys", r"it logs mine/loss_2, which none of its keys names: \['mine/loss'\]"),
    Silent: ("keys", "it logged nothing"),
    OwnShare: ("processes", r"of two processes, one logs mine/loss = .*, the other"),
    Pid: ("processes", r"of two processes, one logs mine/loss = .*, the other"),
    Forgetful: ("resumed", r"after an interruption at step=2 it logs mine/loss = 4.0, without one 6.0"),
    Holding: ("pickled", "cannot be pickled"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_callback_is_refused_by_name_of_the_promise(kind):
    promise, message = BROKEN[kind]
    with pytest.raises(AssertionError, match=rf"{kind.__name__} breaks the promise '{promise}': .*{message}") as caught:
        check_callback(kind, skip=PROMISES - {promise})
    assert "To mend it: " in str(caught.value)


def test_a_sound_one_is_sound():
    assert set(check_callback(Loss)) == PROMISES


def test_mistakes_in_the_call():
    with pytest.raises(TypeError, match="make_callback built a int"):
        check_callback(lambda: 3)
