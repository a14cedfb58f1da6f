"""Two processes give the weights, the metrics and the callbacks' numbers of one, on the same episodes."""

from __future__ import annotations

import math
from functools import partial

import pytest

from lightning_gp.testing import on_processes
from tests.module_cases import MODULES, trained_cases
from tests.modules.distributed_fit import fit

COUNTS = ("products", "residual")
"""How a search went, and not what it found: differs with rounding."""


def every_fit(names, rank):
    return {(name, accumulate): fit(name, 2, accumulate) for name in names for accumulate in (1, 2)}


@pytest.fixture(scope="module")
def two_processes(request):
    """What both processes found, for the cases that are run; their start takes longer than a fit."""
    chosen = {item.callspec.params["variant"] for item in request.session.items if item.path == request.path}
    return on_processes(partial(every_fit, [name for name in MODULES if name in chosen]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("variant", trained_cases())
def test_weights_metrics_and_callbacks_equal_those_of_one_process(two_processes, variant, accumulate):
    single = fit(variant, devices=1, accumulate=accumulate)
    for rank in two_processes:
        other = rank[variant, accumulate]
        error = (other["weights"] - single["weights"]).norm() / single["weights"].norm()
        assert error <= 1e-10
        assert other["metrics"] == pytest.approx(single["metrics"], rel=1e-6)
        assert len(single["callbacks"]) >= 4
        assert found(other) == pytest.approx(found(single), rel=1e-5)
    first, second = (comparable(rank[variant, accumulate]["callbacks"]) for rank in two_processes)
    assert first == second


def found(result):
    values = comparable(result["callbacks"])
    return {key: value for key, value in values.items() if not any(word in key for word in COUNTS)}


def comparable(values):
    """NaN equals NaN: a step of ascent has no noise term."""
    return {key: -1e9 if math.isnan(value) else value for key, value in values.items()}
