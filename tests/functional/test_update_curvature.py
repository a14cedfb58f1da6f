"""The Jacobian of the update against central differences of what ``backward()`` leaves after a training step."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_gp import ANIL, ERM, FOMAML, LIL, MAML, GradientPenalty, IRMv1, REx
from lightning_gp._lightning import pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import as_batches
from lightning_gp.functional.update_curvature import UpdateJacobian, leading_curvature
from lightning_gp.networks import SinusoidMLP

SQUARED = {"criterion": F.mse_loss}
LIL_TERMS = {"inner_lr": 0.05, "inner_steps": 2, "divergence": "gaussian", "phase_weight": 0.5, "amplitude_weight": 0.1}
MODULES = {
    "ERM": (ERM, {}),
    "MAML": (MAML, {"inner_lr": 0.05}),
    "MAML, 3 steps": (MAML, {"inner_lr": 0.05, "inner_steps": 3}),
    "FOMAML": (FOMAML, {"inner_lr": 0.05}),
    "FOMAML, 3 steps": (FOMAML, {"inner_lr": 0.05, "inner_steps": 3}),
    "ANIL, first order": (ANIL, {"inner_lr": 0.05, "first_order": True, "inner_steps": 2}),
    "LIL": (LIL, LIL_TERMS),
    "LIL, first order": (LIL, {**LIL_TERMS, "first_order": True}),
    "LIL, target held": (LIL, {**LIL_TERMS, "detach": "target"}),
    "FOMAML by Adam": (FOMAML, {"inner_optimizer": lambda values: torch.optim.Adam(values, lr=0.01, eps=1e-3)}),
    "negative penalty": (GradientPenalty, {"sign": -1, "coefficient": 0.01}),
    "positive penalty": (GradientPenalty, {"coefficient": 0.1}),
    "IRMv1": (IRMv1, {"penalty_weight": 3.0}),
    "REx": (REx, {"penalty_weight": 3.0}),
}
FIRST_ORDER = (
    "FOMAML",
    "FOMAML, 3 steps",
    "ANIL, first order",
    "LIL, first order",
    "LIL, target held",
    "FOMAML by Adam",
)


def case(name):
    kind, options = MODULES[name]
    pl.seed_everything(1, verbose=False)
    module = kind(SinusoidMLP(hidden=(4,)), **SQUARED, **options).double()
    data = SinusoidDataModule(environments_per_batch=3, iterations_per_epoch=1, dtype="float64")
    data.setup("fit")
    (batch,) = as_batches(next(iter(data.train_dataloader())))
    return module, batch


def update(module, batch):
    """What a step of gradient descent of rate 1 subtracts, flat."""
    module.zero_grad()
    module.training_loss(batch).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in module.network.parameters()])


def jacobian_by_differences(module, batch, size=1e-5):
    parameters = list(module.network.parameters())
    theta = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    columns = []
    for unit in torch.eye(theta.numel(), dtype=theta.dtype):
        ends = []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(theta + sign * size * unit, parameters)
            ends.append(update(module, batch))
        columns.append((ends[0] - ends[1]) / (2 * size))
    torch.nn.utils.vector_to_parameters(theta, parameters)
    return torch.stack(columns, 1)


def jacobian_of(module, batch):
    return UpdateJacobian(
        lambda parameters: module.environment_objectives(parameters, batch).mean(), module.network_parameters()
    )


@pytest.mark.parametrize("name", MODULES)
def test_jacobian_is_that_of_the_update_that_training_makes(name):
    module, batch = case(name)
    jacobian = jacobian_of(module, batch)
    assert jacobian.symmetric == (name not in FIRST_ORDER)
    torch.testing.assert_close(jacobian.update, update(module, batch), rtol=1e-10, atol=1e-12)
    expected = jacobian_by_differences(module, batch)
    units = torch.eye(jacobian.size, dtype=torch.float64)
    rows = torch.stack([jacobian(unit) for unit in units])  # Jᵀ e_i is the i-th row of J
    assert float((rows - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max()))
    symmetric = float((expected - expected.T).abs().max()) < 1e-6 * float(expected.abs().max())
    assert symmetric == jacobian.symmetric


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["MAML", "FOMAML", "LIL, first order"])
def test_leading_curvature_is_that_of_the_dense_matrix(name, scaled, monkeypatch):
    monkeypatch.setattr("lightning_gp.functional.update_curvature.DENSE", 0)  # Arnoldi, though the network is small
    module, batch = case(name)
    jacobian = jacobian_of(module, batch)
    root = torch.rand(jacobian.size, dtype=torch.float64) + 0.1 if scaled else torch.ones(jacobian.size).double()
    decay = 0.3 * torch.rand(jacobian.size, dtype=torch.float64) if scaled else None
    found = leading_curvature(jacobian, root if scaled else None, decay, tol=1e-6)
    matrix = jacobian_by_differences(module, batch) + (torch.diag(decay) if scaled else 0.0)
    values = torch.linalg.eigvals(root[:, None] * matrix * root)
    rates = torch.where(values.real > 0, 2 * values.real / values.abs().square(), math.inf)
    leading = complex(values[rates.argmin()])
    assert found.converged
    assert found.value.real == pytest.approx(leading.real, rel=1e-5)
    assert abs(found.value.imag) == pytest.approx(abs(leading.imag), abs=1e-5 * abs(leading))
    assert found.residual < 1e-3 * abs(leading)


def test_a_warm_start_finds_the_same():
    module, batch = case("MAML")
    jacobian = jacobian_of(module, batch)
    cold = leading_curvature(jacobian, tol=1e-3)
    warm = leading_curvature(jacobian, tol=1e-3, initial=cold.vector)
    assert warm.value.real == pytest.approx(cold.value.real, rel=1e-3)
    assert warm.converged


def test_what_is_not_finite_gives_nan():
    nan = torch.tensor([math.nan, 1.0])
    found = leading_curvature(UpdateJacobian(lambda p: (nan * p["w"] ** 2).sum(), {"w": torch.ones(2)}))
    assert math.isnan(found.value.real)
    assert not found.converged


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("kind", [FOMAML, MAML])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gradient_descent_on_lines_diverges_beyond_the_critical_rate(kind, steps, factor):
    """One weight, H₁ = 10 and H₂ = 0.1: a run of the real module, where the mean curvature says nothing of use."""
    module = kind(torch.nn.Linear(1, 1, bias=False), inner_lr=0.06, inner_steps=steps, **SQUARED).double()
    x = torch.tensor([[[math.sqrt(5.0)]], [[math.sqrt(0.05)]]], dtype=torch.float64)
    from lightning_gp.environments import Environments

    batch = Environments((x, 0 * x))
    critical = 2 / leading_curvature(jacobian_of(module, batch)).value.real
    optimizer = torch.optim.SGD(module.parameters(), lr=factor * critical)
    with torch.no_grad():
        module.network.weight.fill_(1.0)
    for _ in range(100):
        optimizer.zero_grad()
        module.training_loss(batch).backward()
        optimizer.step()
    assert (float(module.network.weight.detach().abs()) > 1) == (factor > 1)
