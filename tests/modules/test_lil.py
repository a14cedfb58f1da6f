"""LIL against the equations of L22 written out with loops and double backward, for every base algorithm."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_gp import LIL, MAML
from lightning_gp.environments import Environments
from lightning_gp.functional.linearity import loss_gradient_ratio, phase_consistency
from tests.cases import flat, images, regression, relative_error
from tests.modules.lil_cases import gradient, terms_of

BASES = {
    "MAML": {},
    "FOMAML": {"first_order": True},
    "ANIL": {"adapt": "head"},
    "BOIL": {"adapt": "body"},
    "BOIL, first order": {"adapt": "body", "first_order": True},
}
FORMS = {"together": True, "one by one": False, "chunks": 2}


@pytest.fixture(autouse=True)
def no_warning_for_one_step():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "inner_steps=1")
        yield


def norm(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def divergence_of(kind, target, approximate):
    if kind == "gaussian":
        return ((target - approximate) ** 2).flatten(1).sum(1).mean() / 2
    p, q = target.softmax(1), approximate.softmax(1)
    if kind == "reverse_kl":
        p, q = q, p
    return (p * (p / q).log()).sum(1).mean()


def written_out(setting, module, kind="kl", detach="none", lr=None):
    """Means over environments of the task, phase and amplitude losses, of δ, and the gradient of the weighted sum."""
    network = setting.fresh()
    parameters = dict(network.named_parameters())
    adapted = [name for name in parameters if name in module.adapted]
    lr = setting.inner_lr if lr is None else lr
    (xs, ys), (xq, yq) = setting.environments
    values, gradients = [], []
    for e in range(len(xs)):
        theta, length, first, constant = dict(parameters), 0.0, None, dict(parameters)
        for _ in range(module.inner_steps):
            loss = setting.criterion(functional_call(network, theta, (xs[e],)), ys[e])
            gradient = torch.autograd.grad(loss, [theta[name] for name in adapted], create_graph=True)
            first = gradient if first is None else first
            step = {name: lr * g for name, g in zip(adapted, gradient, strict=True)}
            length = length + norm(step.values())
            theta = {**theta, **{name: theta[name] - step[name] for name in adapted}}
            constant = {**constant, **{name: constant[name] - step[name].detach() for name in adapted}}
        delta = length / norm(first)
        hat = {**parameters, **{n: parameters[n] - delta * g for n, g in zip(adapted, first, strict=True)}}
        target, approximate = functional_call(network, theta, (xq[e],)), functional_call(network, hat, (xq[e],))
        target = target.detach() if detach == "target" else target
        approximate = approximate.detach() if detach == "approximation" else approximate
        phase = divergence_of(kind, target, approximate)
        end = constant if module.first_order else theta
        task = setting.criterion(functional_call(network, end, (xq[e],)), yq[e])
        total = task + module.phase_weight * phase + module.amplitude_weight * length
        gradients.append(flat(torch.autograd.grad(total, list(parameters.values()))))
        values.append(torch.stack([task, phase, length, delta]).detach())
    return torch.stack(values).mean(0), torch.stack(gradients).mean(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("base", BASES)
def test_it_equals_the_written_out_equations(base, steps, form):
    setting = images()
    weights = {"phase_weight": 0.7, "amplitude_weight": 0.3}
    module = LIL(setting.fresh(), setting.inner_lr, steps, **BASES[base], **weights, vectorize=FORMS[form])
    values, expected = written_out(setting, module)
    torch.testing.assert_close(terms_of(module, setting.environments), values[:3], rtol=1e-8, atol=1e-12)
    assert relative_error(gradient(module, setting.environments), expected) < 1e-8
    if steps > 1:
        assert values[1] > 1e-5  # there is a phase loss to compare


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("base", BASES)
def test_regression_with_gaussian_outputs(base, steps, form):
    setting = regression()
    options = {"phase_weight": 0.7, "amplitude_weight": 0.3, "divergence": "gaussian", "criterion": F.mse_loss}
    module = LIL(setting.fresh(), setting.inner_lr, steps, **BASES[base], **options, vectorize=FORMS[form])
    values, expected = written_out(setting, module, kind="gaussian")
    torch.testing.assert_close(terms_of(module, setting.environments), values[:3], rtol=1e-8, atol=1e-12)
    assert relative_error(gradient(module, setting.environments), expected) < 1e-8


@pytest.mark.parametrize("base", ["MAML", "FOMAML", "ANIL"])
@pytest.mark.parametrize("detach", ["target", "approximation"])
@pytest.mark.parametrize("kind", ["kl", "reverse_kl"])
def test_detach_and_direction(base, detach, kind):
    setting = images()
    options = {"phase_weight": 0.7, "amplitude_weight": 0.3, "detach": detach, "divergence": kind}
    module = LIL(setting.fresh(), setting.inner_lr, 3, **BASES[base], **options)
    values, expected = written_out(setting, module, kind, detach)
    torch.testing.assert_close(terms_of(module, setting.environments), values[:3], rtol=1e-8, atol=1e-12)
    assert relative_error(gradient(module, setting.environments), expected) < 1e-8


def test_delta_is_the_path_over_the_first_gradient():
    from lightning_gp.functional.linearity import approximation

    setting = images()
    module = LIL(setting.fresh(), setting.inner_lr, 3)
    trajectory = module.adaptation(module.loss, module.network_parameters(), setting.environments)
    hat, start, first = approximation(trajectory), trajectory.parameters[0], trajectory.gradients[0]
    found = [norm(hat[n][e] - start[n][e] for n in hat) / norm(first[n][e] for n in hat) for e in range(3)]
    values, _ = written_out(setting, module)
    torch.testing.assert_close(torch.stack(found).mean().detach(), values[3], rtol=1e-8, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_without_weights_it_is_the_base_algorithm(base):
    setting = images()
    plain = MAML(setting.fresh(), setting.inner_lr, 3, **BASES[base])
    module = LIL(setting.fresh(), setting.inner_lr, 3, phase_weight=0, amplitude_weight=0, **BASES[base])
    assert module.second_order is plain.second_order
    assert gradient(module, setting.environments).equal(gradient(plain, setting.environments))


@pytest.mark.parametrize("per", ["scalar", "parameter", "element"])
@pytest.mark.parametrize("first_order", [False, True])
def test_learned_rates(per, first_order):
    """Finite differences, of the value for second order; first order has the rates' own gradient of FOMAML."""
    setting = regression(smooth=True)
    options = {"criterion": F.mse_loss, "learn_inner_lr": True, "inner_lr_per": per, "first_order": first_order}
    weights = {"phase_weight": 0.0 if first_order else 0.7, "amplitude_weight": 0.0 if first_order else 0.3}
    module = LIL(setting.fresh(), 0.1, 3, divergence="gaussian", **options, **weights)
    gradient(module, setting.environments)
    if first_order:
        tiny = LIL(setting.fresh(), 0.1, 3, divergence="gaussian", **options, phase_weight=1e-13, amplitude_weight=0)
        assert relative_error(gradient(tiny, setting.environments), gradient(module, setting.environments)) < 1e-8
        return
    for rate in module.inner_rates.parameters():
        index = (0,) * rate.ndim
        values = []
        for distance in (1e-4, -1e-4):
            with torch.no_grad():
                rate[index] += distance
            values.append(module.training_loss(setting.environments).item())
            with torch.no_grad():
                rate[index] -= distance
        assert float(rate.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5, abs=1e-9)


class Direction(nn.Module):
    """Linear in its parameters; with the mean output as loss, the inner gradient is the mean input: constant."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -2.0], [1.0, 4.0]], dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight


def test_a_linear_loss_has_a_straight_path_exactly():
    """Numbers that float64 holds exactly: |g| = 5 in each environment, so that no rounding hides an error."""
    x = torch.tensor([[[0.0, 0.0], [6.0, 8.0]], [[8.0, 0.0], [0.0, 6.0]]], dtype=torch.float64)
    y = torch.tensor([[0, 1], [1, 0]])
    criterion = lambda outputs, y: outputs[:, 0].mean()  # noqa: E731
    module = LIL(Direction(), 0.25, 3, phase_weight=1.0, amplitude_weight=1.0, criterion=criterion)
    environments = Environments((x, y), (x, y))
    trajectory = module.adaptation(module.loss, module.network_parameters(), environments, final_gradient=True)
    assert phase_consistency(trajectory).tolist() == [1.0, 1.0]
    assert loss_gradient_ratio(trajectory).tolist() == [1.0, 1.0]
    terms = module.environment_terms(module.network_parameters(), environments)
    assert terms["phase_loss"].tolist() == [0.0, 0.0]
    assert terms["amplitude_loss"].tolist() == [3.75, 3.75]


@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"divergence": "reverse_kl"}, {"detach": "target"}])
def test_a_zero_first_gradient_is_no_penalty_and_no_nan(options):
    network = nn.Linear(2, 2).double()
    x, y = torch.zeros(3, 4, 2).double(), torch.tensor([0, 1, 0, 1]).expand(3, 4)
    with torch.no_grad():
        network.bias.zero_()
    query = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    environments = Environments((x, y), (query, torch.zeros(3, 5, dtype=torch.long)))
    module = LIL(network, 0.5, 3, phase_weight=1.0, amplitude_weight=1.0, **options)
    terms = module.environment_terms(module.network_parameters(), environments)
    assert terms["phase_loss"].tolist() == terms["amplitude_loss"].tolist() == [0.0, 0.0, 0.0]
    plain = MAML(copy.deepcopy(network), 0.5, 3, **{k: v for k, v in options.items() if k == "first_order"})
    torch.testing.assert_close(gradient(module, environments), gradient(plain, environments), rtol=0, atol=1e-15)
