"""FSDP2: two processes with sharded layers measure what one measures, and train as they do without callbacks."""

from types import SimpleNamespace

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
from lightning_gp.callbacks.shards import FSDP_MODULE
from lightning_gp.testing import on_processes
from tests.callbacks.callback_cases import sinusoid_maml
from tests.callbacks.sharded_run import RUNS, Classifier, loaders, run, trainer

pytestmark = pytest.mark.skipif(not FSDP_MODULE, reason="FSDP2 needs torch >= 2.6")


def both(rank, folder):
    found = {(name, measured): run(name, 2, measured) for name in RUNS for measured in (False, True)}
    return {**found, "resumed": run("float64", 2, checkpoint=folder), "uneven": uneven()}


def uneven():
    """Processes whose shares of 8 examples are one batch and two."""
    limits = {"limit_train_batches": 3, "limit_val_batches": 3}
    with pytest.raises(ValueError, match=r"equally many batches in their parts of the probe batch.*probe_size=None"):
        trainer(2, [GradientNorm(at="probe", probe_size=8)], **limits).fit(Classifier(), *loaders(2, sizes=(8, 4)))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "shards"
    return on_processes(lambda rank: both(rank, folder))


@pytest.mark.parametrize("name", RUNS)
def test_training_is_bitwise_the_same(two_processes, name):
    for rank in two_processes:
        bare, measured = rank[name, False], rank[name, True]
        assert torch.equal(bare["weights"], measured["weights"])
        assert bare["seen"] == measured["seen"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_measure_what_one_does(two_processes, name):
    alone, (first, second) = run(name, 1), (rank[name, True] for rank in two_processes)
    assert first["values"] == second["values"]
    assert len(alone["values"]) >= 3
    if name == "differences":
        one, two = (
            {key: each["values"][key] for key in each["values"] if "eigenvalue" in key} for each in (alone, first)
        )
        assert len(one) == 2
        assert two == pytest.approx(one, rel=1e-3)  # another random start
        return
    rounding = 1e-7 if name == "float32" else 1e-12  # of a ratio of small differences
    assert first["values"] == pytest.approx(alone["values"], rel=1e-6, abs=rounding)
    assert float((first["weights"] - alone["weights"]).norm()) <= 1e-6 * float(alone["weights"].norm())


def test_a_resumed_run_measures_the_same(two_processes):
    for rank in two_processes:
        assert rank["resumed"]["values"] == rank["float64", True]["values"]
        assert torch.equal(rank["resumed"]["weights"], rank["float64", True]["weights"])


# -- refusals -------------------------------------------------------------------------------------------------------


def refused(callback, name, module=None, stage="fit", **attributes):
    """The message at the setup under a strategy of this name; the real ones need packages and GPUs."""
    strategy = type(name, (), attributes)()
    stub = SimpleNamespace(strategy=strategy, global_step=0, callbacks=(), global_rank=0, world_size=2)
    with pytest.raises(ValueError, match=rf"{type(callback).__name__}.*{name}|tensor-parallel") as error:
        callback.setup(stub, Classifier() if module is None else module, stage)
    return str(error.value)


@pytest.mark.parametrize("probe", [HessianEigenvalues, LearningRateBounds], ids=lambda cls: cls.__name__)
def test_second_derivatives_are_refused_under_fsdp2(probe):
    message = refused(probe(), "ModelParallelStrategy")
    assert "torch.autograd.grad, of which second derivatives are made, gives None" in message
    assert "GradientNorm, CosineSimilarity, GradientNoise" in message


def test_what_has_whole_parameters_passed_in_is_refused_under_fsdp2():
    assert "whole parameters" in refused(PhaseAmplitudeConsistency(), "ModelParallelStrategy", sinusoid_maml())
    assert "GradientNorm(at='step')" in refused(CosineSimilarity(), "ModelParallelStrategy", sinusoid_maml())
    assert "in training" in refused(GradientNorm(episodes=3), "ModelParallelStrategy", stage="validate")


def test_tensor_parallelism_is_refused():
    message = refused(GradientNorm(), "ModelParallelStrategy", _tensor_parallel_size=2)
    assert "Use tensor_parallel_size=1" in message


@pytest.mark.parametrize(
    "probe", [GradientNorm, CriticalLearningRate, HessianEigenvalues], ids=lambda cls: cls.__name__
)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DeepSpeedStrategy", "its own engine"),
        ("FSDPStrategy", "FSDP1 joins the parameters"),
        ("XLAFSDPStrategy", "XLA compiles"),
    ],
)
def test_other_sharding_is_refused_with_its_reason_and_the_way_out(probe, name, reason):
    message = refused(probe(), name)
    assert reason in message
    assert "strategy='ddp'" in message
    assert "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)" in message
