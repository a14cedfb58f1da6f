"""What all probes share: how a loss is found, what is refused, cadence, checkpoints, loggers."""

import csv
import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F

from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from tests.callbacks.callback_cases import (
    Classifier,
    Manual,
    assert_same_training,
    build,
    fit,
    loaders,
    sinusoid_data,
    sinusoid_maml,
    trainer,
)
from tests.cases import Once


def refused(tmp_path, module, callback, match, error=ValueError, **options):
    with pytest.raises(error, match=match):
        fit(tmp_path, module, loaders(), [callback], **options)


def with_step(step):
    module = build(Classifier)
    module.training_step = lambda batch, batch_idx: step(module, *batch)
    return module


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [GradientNorm(at="probe"), CosineSimilarity(), HessianEigenvalues()])
def test_manual_optimization_without_loss_fn_names_the_three_ways(tmp_path, callback):
    ways = r"automatic_optimization=False.*loss_fn=.*environment_losses.*training_step"
    refused(tmp_path, build(Manual), callback, ways)


def test_more_eigenvalues_than_parameters_are_refused_in_setup(tmp_path):
    refused(tmp_path, build(Classifier), HessianEigenvalues(k=100), r"k=100.*only 99 trainable parameters.*k <= 99")


def test_a_loss_that_is_not_a_scalar_is_refused(tmp_path):
    def table(module, batch):
        return F.cross_entropy(module.network(batch[0]), batch[1], reduction="none").view(2, -1)

    refused(tmp_path, build(Classifier), HessianEigenvalues(loss_fn=table), r"shape \(2, 4\); allowed is a scalar")
    refused(tmp_path, build(Classifier), HessianEigenvalues(loss_fn=lambda m, b: 1.0), "returned float")


def test_a_loss_without_parameters_is_refused(tmp_path):
    constant = GradientNorm(loss_fn=lambda module, batch: batch[0].mean())
    refused(tmp_path, build(Classifier), constant, "does not depend on the module's trainable parameters")


def test_a_step_that_returns_nothing_is_passed_over(tmp_path):
    module = build(Classifier)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) if batch_idx else None
    callback = HessianEigenvalues(every_n_epochs=2)
    fit(tmp_path, module, loaders(), [callback])
    assert callback.batch.indices == [1]
    assert math.isfinite(callback.values["curvature/eigenvalue_1"])


def test_kernels_without_double_backward_are_refused(tmp_path):
    module = with_step(lambda module, x, y: F.cross_entropy(Once.apply(module.network(x)), y))
    refused(tmp_path, module, HessianEigenvalues(), "no double backward", RuntimeError)


def test_arguments_are_checked():
    for arguments, match in (({"k": 0}, "k=0"), ({"objective": "x"}, "objective='x'"), ({"tol": 0.0}, "tol=0.0")):
        with pytest.raises(ValueError, match=match):
            HessianEigenvalues(**arguments)
    with pytest.raises(ValueError, match="max_products=1"):
        HessianEigenvalues(k=2, max_products=1)
    for arguments, match in (({"optimizer": -1}, "optimizer=-1"), ({"tol": 2.0}, "tol=2.0"),
                             ({"max_products": 0}, "max_products=0")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            LearningRateBounds(**arguments)


def test_the_inner_loop_takes_no_loss_fn(tmp_path):
    with pytest.raises(ValueError, match="remove loss_fn"):
        fit(tmp_path, sinusoid_maml(), sinusoid_data(), [PhaseAmplitudeConsistency(loss_fn=lambda m, b: None)])


def test_two_instances_need_two_prefixes(tmp_path):
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(tmp_path, [GradientNorm(), GradientNorm(groups=1)])


# -- not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_logged_and_training_goes_on(tmp_path, value):
    class Broken(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (value if batch_idx == 0 else 1.0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    eigenvalues, bounds = HessianEigenvalues(), LearningRateBounds()
    callbacks = [GradientNorm(at="probe"), CosineSimilarity(), eigenvalues, bounds]
    ours = fit(tmp_path, build(Broken), loaders(), callbacks, detect_anomaly=False)
    assert ours.global_step == 8
    assert math.isnan(ours.callback_metrics["curvature/eigenvalue_1"])
    assert math.isnan(ours.callback_metrics["gradients/cosine"])
    assert not math.isfinite(ours.callback_metrics["gradients/norm"])


# -- cadence and loggers --------------------------------------------------------------------------------------------


def logged(folder, key):
    with next(folder.rglob("metrics.csv")).open() as lines:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(lines) if row.get(key)]


def test_epochs_and_prefixes(tmp_path):
    callbacks = [GradientNorm(), GradientNorm(at="probe", prefix="probe/", every_n_epochs=2)]
    fit(
        tmp_path, build(Classifier), loaders(), callbacks, max_epochs=4, logger=CSVLogger(tmp_path), log_every_n_steps=1
    )
    assert [step for step, _ in logged(tmp_path, "gradients/norm")] == [3, 7, 11, 15]
    assert [step for step, _ in logged(tmp_path, "probe/gradients/norm")] == [7, 15]
    assert [step for step, _ in logged(tmp_path, "cost_seconds/GradientNorm")] == [3]


def test_steps_do_not_depend_on_log_every_n_steps(tmp_path):
    callback = GradientNorm(at="probe", every_n_steps=3)
    ours = fit(tmp_path, build(Classifier), loaders(), [callback], logger=CSVLogger(tmp_path), log_every_n_steps=50)
    assert [step for step, _ in logged(tmp_path, "gradients/norm")] == [2, 5]
    assert "gradients/norm" in ours.callback_metrics


def test_a_resumed_run_keeps_the_steps(tmp_path):
    fit(tmp_path, build(Classifier), loaders(), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")  # 4 steps
    ours = trainer(tmp_path, [GradientNorm(every_n_steps=3)], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    ours.fit(build(Classifier), *loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert [step for step, _ in logged(tmp_path, "gradients/norm")] == [5]


def test_early_stopping_and_checkpointing_can_watch(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="gradients/norm", mode="min", save_on_train_epoch_end=True)
    stop = EarlyStopping("curvature/eigenvalue_1", mode="max", check_on_train_epoch_end=True)
    callbacks = [GradientNorm(), HessianEigenvalues(), best, stop]
    fit(tmp_path, build(Classifier), loaders(), callbacks, enable_checkpointing=True)
    assert math.isfinite(best.best_model_score)
    assert math.isfinite(stop.best_score)


def test_no_warning_and_no_gradient_is_left_behind(tmp_path):
    module = build(Classifier)
    module.on_train_epoch_end = lambda: module.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*workers.*")
        warnings.filterwarnings("ignore", message=".*logging interval.*")
        fit(tmp_path, module, loaders(), [GradientNorm(at="probe"), CosineSimilarity(), HessianEigenvalues()])
    assert all(parameter.grad is None for parameter in module.parameters())


# -- checkpoints ----------------------------------------------------------------------------------------------------


def resumed(tmp_path, make, data, build_callbacks):
    """Two epochs at once, and one epoch, a checkpoint and another; returns the callbacks of both."""
    whole, parts, rest = build_callbacks(), build_callbacks(), build_callbacks()
    left, right = make(), make()
    fit(tmp_path, left, data(), whole)
    path = tmp_path / "half.ckpt"
    fit(tmp_path, make(), data(), parts, max_epochs=1).save_checkpoint(path)
    torch.load(path, weights_only=True)["callbacks"]
    pl.seed_everything(7, verbose=False)
    second = trainer(tmp_path, rest)
    second.fit(right, *(data() if isinstance(data(), tuple) else (data(),)), ckpt_path=path)
    return (left, whole), (right, rest)


def test_a_resumed_run_goes_on_with_the_same_probe(tmp_path):
    def callbacks():
        return [GradientNorm(), CosineSimilarity(), HessianEigenvalues(tol=1e-6)]

    (left, whole), (right, rest) = resumed(tmp_path, sinusoid_maml, sinusoid_data, callbacks)
    assert_same_training(left, right)
    assert rest[0].batch is rest[1].batch is rest[2].batch
    for before, after in zip(whole, rest, strict=True):
        assert after.values == pytest.approx(before.values, rel=1e-6)
    assert rest[2].values["curvature/products"] == whole[2].values["curvature/products"]


def test_the_probe_of_a_stranger_survives_too(tmp_path):
    def data():
        return loaders(shuffle=True)

    (_, (before,)), (_, (after,)) = resumed(
        tmp_path, lambda: build(Classifier), data, lambda: [GradientNorm(at="probe")]
    )
    for old, new in zip(before.batch.batches[0], after.batch.batches[0], strict=True):
        assert torch.equal(old, new)


def test_probes_of_one_size_share_one_copy_in_memory_and_in_the_checkpoint(tmp_path):
    callbacks = [GradientNorm(at="probe"), CosineSimilarity(), HessianEigenvalues(probe_size=3)]
    ours = fit(tmp_path, build(Classifier), loaders(), callbacks)
    first, second, third = (callback.batch for callback in callbacks)
    assert first is second
    assert first is not third
    assert len(third.batches[0][0]) == 3
    saved = [callback.state_dict()["batch"]["ranks"][0][0][0] for callback in callbacks]
    assert saved[0].data_ptr() == saved[1].data_ptr()
    assert ours.current_epoch == 2


def test_the_batch_is_a_copy_from_before_the_step(tmp_path):
    def spoil(module, x, y):
        loss = F.cross_entropy(module.network(x.clone()), y)
        x.zero_()
        return loss

    callback = GradientNorm(at="probe")
    fit(tmp_path, with_step(spoil), loaders(), [callback])
    assert callback.batch.batches[0][0].abs().sum() > 0


def test_full_batch_training_does_not_fill_the_probe_with_copies(tmp_path):
    callback = HessianEigenvalues(probe_size=1000)
    fit(tmp_path, build(Classifier), loaders(batch_size=32), [callback], max_epochs=3)
    assert [len(x) for x, _ in callback.batch.batches] == [32]


def test_frozen_parameters_are_left_out(tmp_path):
    module = build(Classifier)
    for parameter in module.network[0].parameters():
        parameter.requires_grad_(False)
    callback = GradientNorm(at="probe", groups=2)
    fit(tmp_path, module, loaders(), [callback])
    assert set(callback.values) == {"gradients/norm", "gradients/norm/network.1", "gradients/norm/network.4"}


def test_tied_parameters_count_once(tmp_path):
    class Tied(Classifier):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.network = nn.Sequential(
                nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)
            )
            self.network[2].weight = self.network[0].weight

    module, callback = build(Tied), GradientNorm(at="probe")
    fit(tmp_path, module, loaders(), [callback])
    x, y = callback.batch.batches[0]
    parameters = [module.network[0].weight, *module.network[3].parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(module.network(x), y), parameters)
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert callback.values["gradients/norm"] == pytest.approx(expected.item(), rel=1e-5)
