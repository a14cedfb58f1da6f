"""The neural tangent kernel, against torch.func's Jacobian of one environment at a time."""

import pytest
import torch
from torch.func import functional_call

from lightning_gp.functional import ntk
from tests.cases import images, regression


def reference(problem):
    """Φ of each environment, (E, R, P)."""
    parameters = dict(problem.network.named_parameters())
    rows = []
    for x in problem.environments.support[0]:
        jacobian = torch.func.jacrev(lambda p, x=x: functional_call(problem.network, p, (x,)).flatten())(parameters)
        rows.append(torch.cat([part.flatten(1) for part in jacobian.values()], 1))
    return torch.stack(rows)


def predictor(problem):
    return lambda parameters, x: functional_call(problem.network, parameters, (x,))


@pytest.mark.parametrize("problem", [regression(count=3), images(count=2)], ids=["one output", "batch norm, 3 outputs"])
def test_features_and_kernels(problem, monkeypatch):
    parameters, x = dict(problem.network.named_parameters()), problem.environments.support[0]
    expected = reference(problem)
    torch.testing.assert_close(ntk.ntk_features(predictor(problem), parameters, x), expected)
    whole = ntk.ntk_kernels(predictor(problem), parameters, x)
    torch.testing.assert_close(whole, expected @ expected.mT)
    monkeypatch.setattr(ntk, "KERNEL_BYTES", 1)  # one environment at a time
    torch.testing.assert_close(ntk.ntk_kernels(predictor(problem), parameters, x), whole)
    assert all(parameter.grad is None for parameter in problem.network.parameters())


def test_what_has_no_features_is_refused():
    x = torch.ones(1, 2, 1)
    with pytest.raises(ValueError, match="nothing to differentiate"):
        ntk.ntk_features(lambda p, x: x, {}, x)
    with pytest.raises(ValueError, match="do not depend"):
        ntk.ntk_features(lambda p, x: x, {"w": torch.ones(1)}, x)
