"""Every module of the package keeps the promises that are shipped for others, and broken ones are told apart."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ERM, FOMAML, MAML, EnvironmentModule
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP
from lightning_gp.testing import check_module
from tests.module_cases import MODULES, full_batches, trained_cases

PROMISES = {
    "gradient",
    "vectorize",
    "terms",
    "shapes",
    "repeated",
    "resumed",
    "checkpoint",
    "callbacks",
    "processes",
    "pickled",
}
SKIPPED = {
    "LILPretraining": {"shapes"},  # classes
    "REx, shares": {"terms"},  # coupled, of unequal size
    "ERM, weighted shares": {"terms", "gradient"},  # the same, and weights are held constant
}
ELSEWHERE = {
    "LILPretraining": {"callbacks", "processes"},  # ten seconds, and in tests/modules/test_distributed.py as well
    "Reptile": {"gradient"},  # its update is the gradient of nothing: tests/modules/test_reptile.py
    "ImplicitMAML": {"gradient"},  # tests/modules/test_implicit_maml.py
}
"""What another file tests."""


@pytest.mark.parametrize("name", trained_cases())
def test_every_module_keeps_its_promises(name):
    case, elsewhere = MODULES[name], ELSEWHERE.get(name, set())
    done = check_module(lambda: case.module(case.network(), **case.options), case.data, skip=elsewhere)
    assert set(done) == PROMISES - SKIPPED.get(name, set()) - elsewhere
    assert set(done.skipped) == SKIPPED.get(name, set()) | elsewhere


# -- broken in one way each ---------------------------------------------------------------------------------------


class Detached(MAML):
    """The penalty's gradient never arrives."""

    def environment_terms(self, parameters, environments):
        terms = super().environment_terms(parameters, environments)
        size = torch.stack([value.detach().square().sum() for value in parameters.values()]).sum()
        return {**terms, "size": size.expand_as(terms["loss"]) + 0 * terms["loss"]}


class HalfStep(FOMAML):
    """Computes what it calls first order at other parameters."""

    def environment_terms(self, parameters, environments):
        halved = {name: 0.5 * value for name, value in parameters.items()}
        return super().environment_terms(halved, environments)


class ChunkMaximum(ERM):
    """An environment's number depends on which others are computed with it."""

    def environment_terms(self, parameters, environments):
        losses = self.environment_losses(parameters, environments)
        return {"loss": losses, "worst": losses.max().expand_as(losses)}


class OtherLoss(ERM):
    """Trains something else than it says."""

    def training_loss(self, batch):
        return 2.0 * super().training_loss(batch)


class Scalar(ERM):
    def environment_objectives(self, parameters, environments):
        return self.environment_losses(parameters, environments).mean()


class LostWeight(ERM):
    """Counts a term twice in what it logs."""

    def training_terms(self, batch):
        loss, terms = super().training_terms(batch)
        return loss, {name: 2 * value for name, value in terms.items()}


class Broadcasting(ERM):
    def loss(self, parameters, x, y):
        return (self.predict(parameters, x) - y).square().mean()


class Unseeded(ERM):
    def training_loss(self, batch):
        generator = torch.Generator()
        generator.seed()
        return super().training_loss(batch) * (1 + torch.rand((), generator=generator, dtype=torch.float64))


class Forgetful(ERM):
    """Counts its steps where no checkpoint sees it."""

    count = 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.count += 1

    def term_weights(self):
        return {"loss": 1.0 + self.count}


class Code:
    """Cannot be read without running code."""


class UnsafeCheckpoint(ERM):
    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["mine"] = Code()


class Draining(ERM):
    """What callbacks call uses up something that they cannot put back: a pipe, which stands for files and devices."""

    def on_fit_start(self):
        super().on_fit_start()
        self.fd = os.pipe()
        os.write(self.fd[1], bytes(range(200)))

    def environment_terms(self, parameters, environments):
        (number,) = os.read(self.fd[0], 1)
        return {"loss": super().environment_terms(parameters, environments)["loss"] * (1 + number)}


class OwnVariance(EnvironmentModule):
    """Couples the environments of its own process only."""

    couples_environments = True

    def environment_terms(self, parameters, environments):
        losses = self.environment_losses(parameters, environments)
        return {"risk": losses, "penalty": (losses - losses.mean()).square()}


class Holding(ERM):
    def __init__(self, network, **options):
        super().__init__(network, **options)
        self.transform = lambda x: x


def episodes():
    return SinusoidDataModule(
        shots=5, queries=5, environments_per_batch=4, iterations_per_epoch=4, val_episodes=4, dtype="float64"
    )


class NoSum(ERM):
    """Says that it handles shares; its penalty is not linear in the examples, and summed over none."""

    handles = ("episodes", "shares")

    def environment_terms(self, parameters, environments):
        losses = self.environment_losses(parameters, environments)
        return {"loss": losses.square()}


def smooth():
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))


BROKEN = {
    Detached: ("gradient", r"off finite differences by 0\.\d+|off finite differences by [1-9]"),
    HalfStep: ("gradient", "off the first-order gradient, at the adapted parameters"),
    ChunkMaximum: ("vectorize", "objective of an environment depends on those that are computed with it"),
    OtherLoss: ("terms", r"training_loss is .*, but the mean of environment_objectives is"),
    LostWeight: ("terms", r"\(loss\) is .*, not"),
    Broadcasting: ("shapes", r"targets of shape \(4, 5\) in place of \(4, 5, 1\) are not refused"),
    Unseeded: ("repeated", r"two runs from the same seed end with other weights: \d of"),
    Forgetful: ("resumed", "interrupted after step=2 and resumed ends with other weights"),
    UnsafeCheckpoint: ("checkpoint", "cannot be read without running code"),
    Draining: ("callbacks", r"with .*Hessian.* attached, training ends with other weights"),
    OwnVariance: ("processes", r"process 0 is off by .* \(relative, allowed 1e-10\)"),
    Holding: ("pickled", "cannot be pickled or copied"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_module_is_refused_by_name_of_the_promise(kind):
    promise, message = BROKEN[kind]
    with pytest.raises(AssertionError, match=rf"{kind.__name__} breaks the promise '{promise}': .*{message}") as caught:
        check_module(lambda: kind(smooth(), criterion=F.mse_loss), episodes, skip=PROMISES - {promise})
    assert "To mend it: " in str(caught.value)


def test_one_number_for_each_environment():
    with pytest.raises(AssertionError, match=r"environment_objectives has shape \(\), not \(4,\)"):
        check_module(lambda: Scalar(smooth(), criterion=F.mse_loss), episodes, skip=PROMISES - {"terms"})


def test_shares_that_are_not_summed():
    binary = F.binary_cross_entropy_with_logits
    with pytest.raises(AssertionError, match=r"breaks the promise 'processes'.*dealt in 'shares'"):
        check_module(lambda: NoSum(nn.Linear(3, 1), criterion=binary), full_batches, skip=PROMISES - {"processes"})


def test_what_is_skipped_says_why():
    module = lambda: MAML(SinusoidMLP([4]), criterion=F.mse_loss)  # noqa: E731
    done = check_module(module, full_batches, skip=PROMISES - {"processes"})
    assert "which the module refuses" in done.skipped["processes"]
    batches = [next(iter(loader(episodes())))]
    done = check_module(module, lambda: batches, skip=PROMISES - {"processes", "shapes"})
    assert list(done) == ["shapes"]
    assert "give a data module" in done.skipped["processes"]


def loader(data):
    data.setup("fit")
    return data.train_dataloader()


def test_mistakes_in_the_call():
    with pytest.raises(TypeError, match="make_module built a Linear"):
        check_module(lambda: nn.Linear(1, 1), episodes)
    with pytest.raises(ValueError, match=r"skip names \['gradeint'\].*there are gradient, vectorize"):
        check_module(lambda: ERM(smooth(), criterion=F.mse_loss), episodes, skip="gradeint")
