"""The meta-gradient of every variant and formulation against finite differences and ``higher``."""

from __future__ import annotations

import copy

import higher
import pytest
import torch

from lightning_gp import ANIL, BOIL, FOMAML, MAML
from lightning_gp.environments import Environments
from tests.cases import COMPILES, Problem, flat, images, regression, relative_error

VARIANTS = {"MAML": MAML, "FOMAML": FOMAML, "ANIL": ANIL, "BOIL": BOIL}
FORMS = {
    "together": {"vectorize": True},
    "one by one": {"vectorize": False},
    "chunks": {"vectorize": 2},
    "recomputed": {"vectorize": True, "recompute": True},
    "recomputed one by one": {"vectorize": False, "recompute": True},
}
PROBLEMS = {"regression": regression, "batch norm": images}


def gradient(module: MAML, environments: Environments) -> torch.Tensor:
    module.zero_grad()
    module.training_loss(environments).backward()
    return flat(parameter.grad for parameter in module.parameters())


def by_higher(problem: Problem, steps: int, first_order: bool, names: list[str]) -> torch.Tensor:
    """MAML as users of ``higher`` write it: one environment after the other."""
    network = problem.fresh()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(True)
        parameter.adapted = name in names
    (xs, ys), (xq, yq) = problem.environments
    total = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for e in range(len(xs)):
        inner = torch.optim.SGD(
            [{"params": [p], "lr": problem.inner_lr if p.adapted else 0.0} for p in network.parameters()], lr=0.0
        )
        with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (functional, differentiable):
            for _ in range(steps):
                stop = (lambda gs: [g.detach() for g in gs]) if first_order else None
                differentiable.step(problem.criterion(functional(xs[e]), ys[e]), grad_callback=stop)
            value = problem.criterion(functional(xq[e]), yq[e])
            own = torch.autograd.grad(value, list(functional.parameters(time=0)))
        total = [a + b / len(xs) for a, b in zip(total, own, strict=True)]
    return flat(total)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_equals_higher(problem, variant, steps, form):
    setting = PROBLEMS[problem]()
    module = VARIANTS[variant](setting.fresh(), setting.inner_lr, steps, criterion=setting.criterion, **FORMS[form])
    reference = by_higher(setting, steps, module.first_order, module.adapted)
    assert relative_error(gradient(module, setting.environments), reference) < 1e-8


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("variant", ["MAML", "ANIL", "BOIL"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_equals_finite_differences(problem, variant, steps):
    """Along random directions, Richardson-extrapolated central differences; guards batch norm under vmap."""
    setting = PROBLEMS[problem](smooth=True)
    module = VARIANTS[variant](setting.fresh(), setting.inner_lr, steps, criterion=setting.criterion, vectorize=True)
    exact = gradient(module, setting.environments)
    start = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    generator = torch.Generator().manual_seed(1)

    def value_at(direction: dict[str, torch.Tensor], distance: float) -> float:
        moved = {name: value + distance * direction[name] for name, value in start.items()}
        return module.environment_objectives(moved, setting.environments).mean().item()

    for _ in range(3):
        direction = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in start.items()}
        length = flat(direction.values()).norm()
        direction = {n: v / length for n, v in direction.items()}
        table = [(value_at(direction, h) - value_at(direction, -h)) / (2 * h) for h in (8e-3, 4e-3, 2e-3, 1e-3)]
        for order in (4, 16, 64):  # Richardson: each sweep removes one more even power of the step
            table = [(order * fine - coarse) / (order - 1) for coarse, fine in zip(table[:-1], table[1:], strict=True)]
        along = (exact @ flat(direction.values())).item()
        assert abs(table[0] - along) <= 1e-8 * exact.norm().item()


@pytest.mark.parametrize("per", ["scalar", "parameter", "element"])
@pytest.mark.parametrize("form", FORMS)
def test_learned_rates_get_their_gradient(per, form):
    setting = regression(smooth=True)
    module = MAML(
        setting.fresh(),
        setting.inner_lr,
        2,
        criterion=setting.criterion,
        learn_inner_lr=True,
        inner_lr_per=per,
        **FORMS[form],
    )
    rates = list(module.inner_rates.parameters())
    gradient(module, setting.environments)
    for rate in rates:
        index = (0,) * rate.ndim
        values = []
        for distance in (1e-4, -1e-4):
            with torch.no_grad():
                rate[index] += distance
            values.append(module.training_loss(setting.environments).item())
            with torch.no_grad():
                rate[index] -= distance
        assert float(rate.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5, abs=1e-9)


@pytest.mark.skipif(not COMPILES, reason="torch 2.5 cannot compile the meta-gradient")
@pytest.mark.parametrize("problem", ["regression", pytest.param("batch norm", marks=pytest.mark.slow)])
def test_compiled_gradient_is_the_same(problem):
    setting = PROBLEMS[problem]()
    options = {"criterion": setting.criterion, "learn_inner_lr": True, "inner_steps": 2}
    eager = MAML(setting.fresh(), setting.inner_lr, **options)
    compiled = MAML(copy.deepcopy(eager.network), setting.inner_lr, compile=True, **options)
    assert relative_error(gradient(compiled, setting.environments), gradient(eager, setting.environments)) < 1e-8


def test_rate_zero_is_joint_training():
    from lightning_gp import ERM

    setting = regression()
    maml = MAML(setting.fresh(), 0.0, criterion=setting.criterion)
    erm = ERM(setting.fresh(), criterion=setting.criterion)
    erm.training_loss(setting.environments).backward()
    reference = flat(parameter.grad for parameter in erm.parameters())
    torch.testing.assert_close(gradient(maml, setting.environments), reference)


def test_environments_of_unequal_size_are_averaged_one_by_one():
    setting = regression(count=3)
    (xs, ys), (xq, yq) = setting.environments
    ragged = [
        Environments((xs[e : e + 1, : 3 + e], ys[e : e + 1, : 3 + e]), (xq[e : e + 1], yq[e : e + 1])) for e in range(3)
    ]
    module = MAML(setting.fresh(), 0.1, criterion=setting.criterion)
    whole = gradient(module, ragged)
    parts = [gradient(module, part) for part in ragged]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))
