"""With every callback attached, training is bitwise what it is without."""

import random

import numpy as np
import pytest
import torch

from lightning_gp.callbacks import (
    CosineSimilarity,
    CriticalLearningRate,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from lightning_gp.callbacks.isolation import isolated
from tests.callbacks.callback_cases import (
    Classifier,
    Manual,
    assert_same_training,
    build,
    fit,
    loaders,
    manual_loss,
    sinusoid_data,
    sinusoid_maml,
)


def everything(loss_fn=None, **cadence):
    return [
        LearningRateBounds(0 if loss_fn else None, loss_fn=loss_fn, **cadence),
        CriticalLearningRate(loss_fn=loss_fn, **cadence),
        GradientNorm(loss_fn=loss_fn, at="probe", **cadence),
        GradientNorm(at="step", prefix="step/", **cadence),
        CosineSimilarity(loss_fn=loss_fn, **cadence),
        PhaseAmplitudeConsistency(**cadence),
        HessianEigenvalues(loss_fn=loss_fn, **cadence),
        HessianEigenvalues(loss_fn=loss_fn, objective="training", prefix="training/", **cadence),
    ]


CASES = {
    "maml": (sinusoid_maml, lambda: sinusoid_data(), None),
    "learned rates": (lambda: sinusoid_maml(learn_inner_lr=True, inner_steps=2), lambda: sinusoid_data(), None),
    "classifier": (lambda: build(Classifier), loaders, None),
    "two optimizers": (lambda: build(Manual), loaders, manual_loss),
}


@pytest.mark.filterwarnings("ignore:.*critical rate.*")
@pytest.mark.filterwarnings("ignore:.*no validation batch.*")
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 2}], ids=["epochs", "steps"])
@pytest.mark.parametrize("case", CASES)
def test_trained_weights_are_bitwise_the_same(tmp_path, case, cadence):
    make, data, loss_fn = CASES[case]
    without, attached, callbacks = make(), make(), everything(loss_fn, **cadence)
    before = fit(tmp_path, without, data())
    left = torch.rand(3), np.random.rand(3), random.random()
    after = fit(tmp_path, attached, data(), callbacks)
    right = torch.rand(3), np.random.rand(3), random.random()
    assert_same_training(without, attached)
    assert torch.equal(left[0], right[0])
    assert (left[1] == right[1]).all()
    assert left[2] == right[2]
    for key, value in before.callback_metrics.items():
        assert torch.equal(value, after.callback_metrics[key]), key
    for callback in callbacks:
        if not (case == "two optimizers" and isinstance(callback, CosineSimilarity)):
            assert callback.values
    if case == "classifier":
        assert attached.steps == without.steps
        assert len(attached.outputs) == len(without.outputs)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=str)
def test_mixed_precision_and_accumulation(tmp_path, options):
    without, attached = build(Classifier), build(Classifier)
    callbacks = everything()
    fit(tmp_path, without, loaders(), **options)
    fit(tmp_path, attached, loaders(), callbacks, **options)
    assert_same_training(without, attached)
    for callback in callbacks:
        assert all(np.isfinite(value) for value in callback.values.values()), callback.values


def test_isolation_puts_back_what_the_module_keeps_out_of_torchs_sight():
    module = build(Classifier)
    module.hidden = [torch.zeros(2), {"a": [1]}]
    tensor, inner = module.hidden[0], module.hidden[1]["a"]
    with isolated(module):
        module.hidden[0].add_(1)
        module.hidden[1]["a"].append(2)
        module.extra = 3
        module.network[1].running_mean.add_(1)
        module.eval()
        module.log("x", 1)
    assert torch.equal(tensor, torch.zeros(2))
    assert module.hidden[0] is tensor
    assert inner == [1]
    assert not hasattr(module, "extra")
    assert torch.equal(module.network[1].running_mean, torch.zeros(8))
    assert module.training
    assert module.network[3].training


def test_isolation_restores_after_an_error():
    module, before = build(Classifier), torch.get_rng_state()

    def fail():
        with isolated(module):
            module.steps = 5
            torch.rand(1)
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert module.steps == 0
    assert torch.equal(torch.get_rng_state(), before)
