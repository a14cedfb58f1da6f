"""``LearningRateBounds`` against Jacobians by differences of real training steps, and against runs that diverge."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gp import ERM, FOMAML, LIL, MAML, GradientPenalty, ImplicitMAML, IRMv1, Reptile, REx
from lightning_gp.callbacks import HessianEigenvalues, LearningRateBounds
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from lightning_gp.theory.optimizers import update_rule
from tests.callbacks.callback_cases import Classifier, Manual, build, fit, loaders, manual_loss, sinusoid_data

SQUARED = {"criterion": F.mse_loss}
DOUBLE = {"precision": "64-true"}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum, decay": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
}
LIL_TERMS = {"inner_lr": 0.02, "inner_steps": 2, "divergence": "gaussian", "amplitude_weight": 0.1}
MODULES = {
    "ERM": (ERM, {}),
    "MAML": (MAML, {"inner_lr": 0.02, "inner_steps": 2}),
    "FOMAML": (FOMAML, {"inner_lr": 0.02}),
    "LIL": (LIL, LIL_TERMS),
    "ascent": (MAML, {"inner_lr": 0.02, "inner_steps": 2, "direction": "ascent"}),
    "sharpness-aware": (FOMAML, {"inner_lr": 0.05, "normalize": True, "direction": "ascent"}),
    "Reptile": (Reptile, {"inner_lr": 0.02, "inner_steps": 3}),
    "ImplicitMAML": (ImplicitMAML, {"inner_lr": 0.02, "inner_steps": 3, "cg_steps": 2}),
    "negative penalty": (GradientPenalty, {"sign": -1, "coefficient": 0.01}),
    "IRMv1": (IRMv1, {"penalty_weight": 3.0}),
    "REx": (REx, {"penalty_weight": 3.0}),
}


def module_of(name, optimizer):
    kind, options = MODULES[name]
    torch.manual_seed(0)
    return kind(SinusoidMLP((4,)), **SQUARED, optimizer=optimizer, **options)


def update(module, batches):
    module.zero_grad()
    total = sum(len(batch.support[0]) for batch in batches)
    for batch in batches:
        (module.training_loss(batch) * len(batch.support[0]) / total).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in module.network.parameters()])


def jacobian_by_differences(module, batches, size=1e-5):
    parameters = list(module.network.parameters())
    theta = nn.utils.parameters_to_vector(parameters).detach().clone()
    columns = []
    for unit in torch.eye(theta.numel(), dtype=theta.dtype):
        ends = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(theta + sign * size * unit, parameters)
            ends.append(update(module, batches))
        columns.append((ends[0] - ends[1]) / (2 * size))
    nn.utils.vector_to_parameters(theta, parameters)
    return torch.stack(columns, 1)


def expected_critical_rate(module, batches, optimizer):
    """From the dense matrix and the modulus of the recursion's roots, not from the closed forms."""
    parameters = dict(module.network.named_parameters())
    rule = update_rule(optimizer)
    root, decay = rule.root_scales(parameters), rule.coupled_decay(parameters)
    matrix = jacobian_by_differences(module, batches)
    matrix = matrix if decay is None else matrix + torch.diag(decay)
    values = [complex(value) for value in torch.linalg.eigvals(root[:, None] * matrix * root) if value.real > 0]
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        stable = all(rule.recursion.spectral_radius(value, middle, rule.decay) <= 1 for value in values)
        low, high = (middle, high) if stable else (low, middle)
    return low


EACH = [(name, "sgd") for name in MODULES]
EACH += [(name, optimizer) for name in ("ERM", "MAML", "FOMAML") for optimizer in ("momentum, decay", "adamw")]


@pytest.mark.parametrize(("name", "optimizer"), EACH)
def test_edge_is_that_of_the_dense_jacobian(tmp_path, name, optimizer):
    bounds = LearningRateBounds(tol=1e-6)
    module = module_of(name, OPTIMIZERS[optimizer])
    trainer = fit(tmp_path, module, sinusoid_data(4, dtype="float64"), [bounds], **DOUBLE)
    critical = expected_critical_rate(module, bounds.batch.batches, trainer.optimizers[0])
    values = bounds.values
    assert values["learning_rates/outer_critical"] == pytest.approx(critical, rel=1e-4)
    assert values["learning_rates/edge"] == pytest.approx(1e-3 / critical, rel=1e-4)
    assert values["learning_rates/outer"] == 1e-3
    assert values["learning_rates/converged"] == 1
    assert trainer.callback_metrics["learning_rates/edge"] == pytest.approx(1e-3 / critical, rel=1e-4)


def dense_curvatures(module, batches, split):
    parameters = list(module.network.parameters())
    found = []
    for batch in batches:
        for x, y in zip(*getattr(batch, split), strict=True):
            gradients = torch.autograd.grad(F.mse_loss(module.network(x), y), parameters, create_graph=True)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in flat]
            hessian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
            found.append(float(torch.linalg.eigvalsh(hessian).max()))
    return found


@pytest.mark.parametrize(
    ("name", "rate", "split"),
    [("FOMAML", 0.02, "support"), ("MAML", 0.02, "support"), ("negative penalty", 0.02, "query")],
)
def test_inner_bound_is_of_the_environments_own_losses(tmp_path, name, rate, split):
    bounds = LearningRateBounds(tol=1e-8)
    module = module_of(name, OPTIMIZERS["sgd"])
    fit(tmp_path, module, sinusoid_data(4, dtype="float64"), [bounds], **DOUBLE)
    critical = 1 / max(dense_curvatures(module, bounds.batch.batches, split))
    assert bounds.values["learning_rates/inner"] == rate
    assert bounds.values["learning_rates/inner_critical"] == pytest.approx(critical, rel=1e-6)
    assert bounds.values["learning_rates/inner_ratio"] == pytest.approx(rate / critical, rel=1e-6)


@pytest.mark.parametrize("name", ["ERM", "IRMv1", "REx"])
def test_modules_without_an_inner_loop_have_no_inner_rate(tmp_path, name):
    bounds = LearningRateBounds()
    fit(tmp_path, module_of(name, OPTIMIZERS["sgd"]), sinusoid_data(4), [bounds])
    assert not [key for key in bounds.values if "inner" in key]


def test_curvatures_of_environments_and_groups(tmp_path):
    callback = HessianEigenvalues(tol=1e-8, per_environment=True, split="support", groups=1)
    module = module_of("MAML", OPTIMIZERS["sgd"])
    fit(tmp_path, module, sinusoid_data(4, dtype="float64"), [callback], **DOUBLE)
    each = torch.tensor(dense_curvatures(module, callback.batch.batches, "support"), dtype=torch.float64)
    values = callback.values
    assert values["curvature/environment_max"] == pytest.approx(float(each.max()), rel=1e-6)
    assert values["curvature/environment_mean"] == pytest.approx(float(each.mean()), rel=1e-6)
    assert values["curvature/environment_std"] == pytest.approx(float(each.std(correction=0)), rel=1e-5)
    parameters = dict(module.network.named_parameters())
    losses = [F.mse_loss(module.network(x), y) for b in callback.batch.batches for x, y in zip(*b.support, strict=True)]
    blocks = {name.split(".")[0] for name in parameters}
    for block in blocks:
        own = [value for name, value in parameters.items() if name.split(".")[0] == block]
        gradient = torch.autograd.grad(torch.stack(losses).mean(), own, create_graph=True)
        flat = torch.cat([part.reshape(-1) for part in gradient])
        rows = [torch.autograd.grad(entry, own, retain_graph=True) for entry in flat]
        hessian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
        found = values[f"curvature/eigenvalue_1/{block}"]
        assert found == pytest.approx(float(torch.linalg.eigvalsh(hessian).max()), rel=1e-6)


@pytest.mark.parametrize("name", ["MAML", "REx", "IRMv1"])
def test_preconditioned_training_eigenvalues(tmp_path, name):
    callback = HessianEigenvalues(k=2, tol=1e-8, objective="training", preconditioned=True)
    module = module_of(name, OPTIMIZERS["adamw"])
    trainer = fit(tmp_path, module, sinusoid_data(4, dtype="float64"), [callback], **DOUBLE)
    root = update_rule(trainer.optimizers[0]).root_scales(dict(module.network.named_parameters()))
    matrix = root[:, None] * jacobian_by_differences(module, callback.batch.batches) * root
    expected = torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)
    for i in (0, 1):
        assert callback.values[f"curvature/eigenvalue_{i + 1}"] == pytest.approx(float(expected[i]), rel=1e-4)


def test_first_order_has_no_training_hessian(tmp_path):
    with pytest.raises(ValueError, match="holds constant a part"):
        fit(
            tmp_path,
            module_of("FOMAML", OPTIMIZERS["sgd"]),
            sinusoid_data(4),
            [HessianEigenvalues(objective="training")],
        )


# -- runs ------------------------------------------------------------------------------------------------------------


def lines(curvatures):
    """Environments ½ h w² on one weight: the loss (w x)² with x² = h/2."""
    x = torch.tensor(curvatures, dtype=torch.float64).div(2).sqrt().reshape(-1, 1, 1)
    return [Environments((x, 0 * x), (x, 0 * x)) for _ in range(4)]


def run_on_lines(tmp_path, kind, factor, curvatures=(10.0, 0.1), **options):
    """The critical rate at a small rate, and how far a training at ``factor`` times that leaves the weight."""

    def module(rate):
        own = kind(nn.Linear(1, 1, bias=False), optimizer=partial(torch.optim.SGD, lr=rate), **SQUARED, **options)
        nn.init.constant_(own.network.weight, 1.0)
        return own

    def data():
        return DataLoader(lines(curvatures), batch_size=None)

    bounds = LearningRateBounds(tol=1e-6)
    fit(tmp_path, module(1e-9), data(), [bounds], max_epochs=1, **DOUBLE)
    critical = bounds.values["learning_rates/outer_critical"]
    trained = module(factor * critical)
    fit(tmp_path, trained, data(), max_epochs=30, **DOUBLE)
    return critical, float(trained.network.weight.detach().abs())


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ERM, {}),
        (MAML, {"inner_lr": 0.2}),
        (MAML, {"inner_lr": 0.05, "inner_steps": 5}),
        (FOMAML, {"inner_lr": 0.05}),
        (FOMAML, {"inner_lr": 0.2, "inner_steps": 2}),
        (GradientPenalty, {"sign": -1, "coefficient": 0.02}),
        (GradientPenalty, {"sign": 1, "coefficient": 0.2}),
    ],
)
def test_runs_diverge_beyond_the_critical_rate_and_not_below(tmp_path, kind, options, factor):
    _, grown = run_on_lines(tmp_path, kind, factor, **options)
    assert (grown > 1) == (factor > 1)


def test_two_environments_are_not_their_mean(tmp_path):
    """H₁ = 10, H₂ = 0.1, MAML, α = 0.2: the mean curvature says 3960, the truth is 0.396."""
    critical, _ = run_on_lines(tmp_path, MAML, 0.5, inner_lr=0.2)
    exact = 2 / ((10 * (1 - 2) ** 2 + 0.1 * (1 - 0.02) ** 2) / 2)
    assert critical == pytest.approx(exact, rel=1e-6)
    assert critical == pytest.approx(0.396, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "options", "warns"),
    [
        (FOMAML, {"inner_lr": 0.15}, True),
        (FOMAML, {"inner_lr": 0.15, "inner_steps": 3}, True),
        (FOMAML, {"inner_lr": 0.15, "inner_steps": 2}, False),
        (MAML, {"inner_lr": 0.15}, False),
        (FOMAML, {"inner_lr": 0.09}, False),
        (GradientPenalty, {"sign": -1, "coefficient": 0.08}, True),
        (GradientPenalty, {"sign": 1, "coefficient": 0.08}, False),
    ],
)
def test_inner_warning_where_the_minimum_is_lost_and_nowhere_else(tmp_path, kind, options, warns):
    """Where it is, a run diverges at a tiny outer rate; where nothing warns, it converges."""
    module = kind(nn.Linear(1, 1, bias=False), optimizer=partial(torch.optim.SGD, lr=0.01), **SQUARED, **options)
    nn.init.constant_(module.network.weight, 1.0)
    data = DataLoader(lines([10.0, 0.1]), batch_size=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, module, data, [LearningRateBounds()], max_epochs=30, **DOUBLE)
    said = [str(each.message) for each in caught if "inner rate" in str(each.message)]
    assert len(said) == warns
    assert (float(module.network.weight.detach().abs()) > 1) == warns


def test_a_rate_that_is_too_high_is_said_once_and_one_that_is_not_never(tmp_path):
    for rate, times in ((50.0, 1), (0.05, 0)):
        module = build(Classifier, dropout=0.0)
        module.configure_optimizers = lambda module=module, rate=rate: torch.optim.SGD(module.parameters(), lr=rate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, module, loaders(), [LearningRateBounds()])
        assert sum("times the critical rate" in str(each.message) for each in caught) == times


def test_an_inner_optimizer_has_an_edge_too(tmp_path):
    bounds = LearningRateBounds()
    module = MAML(SinusoidMLP((4,)), inner_optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.5), **SQUARED)
    fit(tmp_path, module, sinusoid_data(4), [bounds])
    assert 0 < bounds.values["learning_rates/edge"] < math.inf
    assert "learning_rates/inner" not in bounds.values


def test_unknown_optimizers_are_refused_before_the_first_step(tmp_path):
    module = build(Classifier)
    before = [parameter.clone() for parameter in module.parameters()]
    module.configure_optimizers = lambda: torch.optim.Rprop(module.parameters())
    with pytest.raises(ValueError, match="Rprop is not known here"):
        fit(tmp_path, module, loaders(), [LearningRateBounds()])
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_several_optimizers_want_one_to_be_named(tmp_path):
    with pytest.raises(ValueError, match="has 2 optimizers"):
        fit(tmp_path, build(Manual), loaders(), [LearningRateBounds(loss_fn=manual_loss)])
    callbacks = [LearningRateBounds(i, loss_fn=manual_loss, prefix=f"{i}/") for i in (0, 1)]
    fit(tmp_path, build(Manual), loaders(), callbacks)
    assert [each.values[f"{i}/learning_rates/outer"] for i, each in enumerate(callbacks)] == [0.1, 0.01]


def test_ragged_environments_of_a_coupled_objective_are_refused(tmp_path):
    ragged = [Environments((torch.randn(2, n, 1), torch.randn(2, n, 1))) for n in (3, 4)]
    module = REx(nn.Linear(1, 1), **SQUARED)
    with pytest.raises(ValueError, match="couples the environments of a batch"):
        fit(tmp_path, module, DataLoader([ragged], batch_size=None), [LearningRateBounds()])
