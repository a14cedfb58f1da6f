"""Inner optimizers: the path is torch's own, the meta-gradient a finite difference of torch's own path."""

import inspect
from itertools import islice

import pytest
import torch
from torch import optim

from lightning_gp.functional.adaptation import adapt, over_environments
from lightning_gp.functional.inner_optimizers import check_inner_optimizer, differentiable_step, higher_step
from tests.cases import relative_error

ROWS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "maximize": True}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "learned": ("lr", "momentum", "weight_decay")}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "learned": ("dampening",)}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "past": 3}),
    (optim.SGD, {"groups": ({"lr": 0.1}, {"lr": 0.02, "momentum": 0.5, "maximize": True})}),
    (optim.Adam, {"lr": 0.05}),
    (optim.Adam, {"lr": 0.05, "eps": 1e-2, "foreach": True, "maximize": True}),
    (optim.Adam, {"lr": 0.05, "weight_decay": 0.3, "fused": True, "betas": (0.0, 0.9)}),
    *[
        (optim.Adam, {"lr": 0.05, "weight_decay": 0.5, "decoupled_weight_decay": True})
        for name in inspect.signature(optim.Adam).parameters
        if name == "decoupled_weight_decay"  # torch 2.6
    ],
    (optim.Adam, {"lr": 0.05, "amsgrad": True, "betas": (0.7, 0.6)}),
    (optim.Adam, {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "learned": ("lr", "betas")}),
    (optim.Adam, {"lr": 0.05, "betas": (0.8, 0.9), "past": 3, "amsgrad": True, "learned": ("lr",)}),
    (optim.Adam, {"groups": ({"lr": 0.05, "betas": (0.5, 0.9)}, {"lr": 0.1, "weight_decay": 0.1})}),
    (optim.AdamW, {"lr": 0.05, "weight_decay": 0.5}),
    (optim.AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True, "betas": (0.8, 0.7), "learned": ("lr", "betas")}),
    (optim.AdamW, {"lr": 0.05, "weight_decay": 0.4, "past": 2}),
    (optim.NAdam, {"lr": 0.05}),
    (optim.NAdam, {"lr": 0.05, "weight_decay": 0.3, "momentum_decay": 0.3, "maximize": True}),
    (optim.NAdam, {"lr": 0.05, "weight_decay": 0.3, "decoupled_weight_decay": True, "past": 2}),
    (
        optim.NAdam,
        {"betas": (0.8, 0.9), "momentum_decay": 0.1, "learned": ("betas", "momentum_decay")},
    ),
    (optim.RAdam, {"lr": 0.05, "steps": 7}),
    (optim.RAdam, {"lr": 0.05, "steps": 7, "weight_decay": 0.2, "maximize": True}),
    (optim.RAdam, {"lr": 0.05, "weight_decay": 0.2, "decoupled_weight_decay": True, "past": 4}),
    (optim.RAdam, {"lr": 0.05, "steps": 7, "betas": (0.8, 0.99), "learned": ("lr", "betas")}),
    (optim.RAdam, {"lr": 0.05, "betas": (0.8, 0.6), "learned": ("betas",)}),  # so short that it never rectifies
    (optim.RMSprop, {"lr": 0.02}),
    (optim.RMSprop, {"lr": 0.02, "centered": True, "momentum": 0.5, "alpha": 0.9}),
    (optim.RMSprop, {"lr": 0.02, "maximize": True, "weight_decay": 0.3, "alpha": 0.8, "past": 2}),
    (
        optim.RMSprop,
        {"lr": 0.02, "momentum": 0.5, "alpha": 0.8, "eps": 1e-3, "learned": ("lr", "momentum", "alpha", "eps")},
    ),
    (optim.RMSprop, {"lr": 0.02, "momentum": 0.5, "centered": True, "alpha": 0.8, "past": 3, "learned": ("alpha",)}),
    (optim.Adagrad, {"lr": 0.1}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.3, "initial_accumulator_value": 0.2, "maximize": True}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.1, "past": 2, "learned": ("lr", "lr_decay")}),
    (optim.Adadelta, {}),
    (optim.Adadelta, {"lr": 2.0, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    (optim.Adadelta, {"lr": 0.5, "rho": 0.5, "eps": 1e-3, "past": 2, "learned": ("lr", "rho", "eps")}),
]
KINDS = ("plain", "dead unit", "zero gradient")
table = pytest.mark.parametrize(
    ("cls", "row"), ROWS, ids=[f"{c.__name__}-{'-'.join(f'{k}={v}' for k, v in row.items())}" for c, row in ROWS]
)


@pytest.fixture(autouse=True)
def double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


class Setting:
    """A small network, three environments, and one row of the table."""

    def __init__(self, cls, row, kind):
        draw = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        self.act = torch.relu if kind == "dead unit" else torch.tanh
        self.theta = {
            "w1": 0.5 * random(4, 3),
            "b1": 0.3 * random(4),
            "w2": 0.5 * random(2, 4),
            "scale": 1 + 0.1 * random(),
        }
        self.support, self.query = [(random(3, 6, 3), random(3, 6, 2)) for _ in range(2)]
        if kind == "dead unit":
            self.theta["b1"][1] = -100.0
        if kind == "zero gradient":  # in the first environment, at the initial parameters
            self.support[1][0] = self.outputs(self.theta, self.support[0][0])
        row = dict(row)
        self.cls, self.steps, self.learned = cls, row.pop("steps", 4), row.pop("learned", ())
        groups, past = row.pop("groups", ({},)), row.pop("past", 0)
        if kind == "zero gradient" and "eps" in inspect.signature(cls).parameters:
            row["eps"] = 1.0  # 1/ε is a derivative here, which finite differences must resolve
        self.groups = [{**row, **own} for own in groups]
        self.past = [[0.3 * random(*value.shape) for value in self.theta.values()] for _ in range(past)]

    def outputs(self, p, x):
        return p["scale"] * self.act(x @ p["w1"].T + p["b1"]) @ p["w2"].T

    def loss(self, p, x, y):
        return (self.outputs(p, x) - y).square().mean()

    def build(self, values, **changes):
        """The optimizer with its groups, after ``past`` steps along given gradients without an environment axis."""

        def grouped(tensors, changes):
            rest, size = iter(tensors), -(-len(tensors) // len(self.groups))
            groups = [{"params": list(islice(rest, size)), **own, **changes} for own in self.groups]
            return self.cls(groups, **{**self.groups[0], **changes})

        optimizer = grouped(values, changes)
        if self.past:
            early = [torch.zeros_like(value) for value in self.theta.values()]
            first = grouped(early, {})
            for gradients in self.past:
                for value, gradient in zip(early, gradients, strict=True):
                    value.grad = gradient
                first.step()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": first.state_dict()["state"]})
            for group in optimizer.param_groups:
                group.update(changes)  # the state dict made copies of tensors
        return optimizer

    def by_torch(self, theta, **changes):
        """The last parameters in each environment by the optimizer itself, and the sum of the query losses."""
        ends, total = [], 0.0
        for (x, y), (xq, yq) in zip(zip(*self.support, strict=True), zip(*self.query, strict=True), strict=True):
            own = {name: value.clone().requires_grad_() for name, value in theta.items()}
            optimizer = self.build(list(own.values()), **changes)
            for _ in range(self.steps):
                optimizer.zero_grad()
                self.loss(own, x, y).backward()
                optimizer.step()
            ends.append({name: value.detach() for name, value in own.items()})
            total += self.loss(own, xq, yq).item()
        return {name: torch.stack([end[name] for end in ends]) for name in theta}, total

    def by_us(self, theta, first_order=False, **changes):
        path = adapt(
            self.loss,
            theta,
            self.support,
            0.0,
            self.steps,
            first_order=first_order,
            inner_optimizer=lambda values: self.build(values, **changes),
        )
        return path.parameters[-1], over_environments(self.loss, path.parameters[-1], {}, *self.query).sum()


def assert_same(ends, expected, begin):
    for name, value in expected.items():
        moved = (value - begin[name]).abs().max()
        assert (ends[name].detach() - value).abs().max() <= 1e-10 * moved, name


@table
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_path_is_torchs(cls, row, kind, default):
    torch.set_default_dtype(default)  # torch keeps counts and products of momenta in it
    setting = Setting(cls, row, kind)
    ends, _ = setting.by_us(setting.theta)
    assert_same(ends, setting.by_torch(setting.theta)[0], setting.theta)


@table
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_is_the_finite_difference_of_torchs_path(cls, row, kind):
    setting = Setting(cls, row, kind)
    theta = {name: value.clone().requires_grad_() for name, value in setting.theta.items()}
    numbers = {name: setting.groups[0][name] for name in setting.learned}
    tensors = as_tensors(numbers)
    ends, total = setting.by_us(theta, **tensors)
    assert_same(ends, setting.by_torch(setting.theta)[0], setting.theta)
    leaves = [leaf for value in tensors.values() for leaf in (value if isinstance(value, tuple) else (value,))]
    gradients = torch.autograd.grad(total, [*theta.values(), *leaves])

    step = 1e-7 if kind == "zero gradient" else 1e-6
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        direction = {n: torch.randn(v.shape, generator=draw) for n, v in setting.theta.items()}
        up, down = (
            setting.by_torch({n: v + sign * step * direction[n] for n, v in setting.theta.items()})[1]
            for sign in (1, -1)
        )
        ours = sum(float((g * d).sum()) for g, d in zip(gradients, direction.values(), strict=False))
        assert ours == pytest.approx((up - down) / (2 * step), rel=2e-5, abs=1e-6)
    for gradient, (name, index) in zip(gradients[len(theta) :], places(numbers), strict=True):
        up, down = (setting.by_torch(setting.theta, **moved(numbers, name, index, sign * 1e-6))[1] for sign in (1, -1))
        assert float(gradient) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7), (name, index)


def as_tensors(numbers):
    def tensor(value):
        return tuple(map(tensor, value)) if isinstance(value, tuple) else torch.tensor(value, requires_grad=True)

    return {name: tensor(value) for name, value in numbers.items()}


def places(numbers):
    return [(n, i) for n, v in numbers.items() for i in (range(len(v)) if isinstance(v, tuple) else [None])]


def moved(numbers, name, index, by):
    value = numbers[name]
    if index is None:
        return {name: value + by}
    return {name: tuple(each + by * (i == index) for i, each in enumerate(value))}


@pytest.mark.parametrize("row", [row for cls, row in ROWS[:3]])
def test_higher_agrees_on_stochastic_gradient_descent(row, monkeypatch):
    setting = Setting(optim.SGD, row, "plain")
    results = []
    for engine in (differentiable_step, higher_step):
        monkeypatch.setattr("lightning_gp.functional.adaptation.differentiable_step", engine)
        theta = {name: value.clone().requires_grad_() for name, value in setting.theta.items()}
        gradients = torch.autograd.grad(setting.by_us(theta)[1], list(theta.values()))
        results.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert relative_error(*results) < 1e-12


def traced(setting, changes):
    """Two steps of an inner loop, the meta-gradient by θ_0 and by the tensors among the options."""
    theta = {name: value.expand(3, *value.shape).clone().requires_grad_() for name, value in setting.theta.items()}
    update = differentiable_step(lambda values: setting.build(values, **changes), theta, create_graph=True)
    learned = [leaf for value in changes.values() for leaf in (value if isinstance(value, tuple) else (value,))]

    def run(*values):
        own = dict(zip(theta, values, strict=True))
        for _ in range(2):
            own = update(own, {name: value.sin() for name, value in own.items()})
        return sum(value.square().sum() for value in own.values())

    return run, list(theta.values()), learned


@pytest.mark.parametrize(
    ("cls", "row"), [row for row in ROWS if "past" not in row[1] and "groups" not in row[1]][::3], ids=str
)
def test_the_update_compiles_as_one_graph(cls, row):
    setting = Setting(cls, row, "plain")
    numbers = {name: setting.groups[0][name] for name in setting.learned}
    results = []
    for compiled in (False, True):
        run, values, learned = traced(setting, as_tensors(numbers))
        if compiled:
            torch._dynamo.reset()
            run = torch.compile(run, fullgraph=True, backend="aot_eager")
        results.append(torch.autograd.grad(run(*values), [*values, *learned]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_first_order_takes_the_gradients_as_constants():
    """One step of SGD: ∂/∂α = −∇L^te(θ_1)·g_0, and by θ_0 the gradient at θ_1 itself."""
    setting = Setting(optim.SGD, {"lr": 0.1, "steps": 1}, "plain")
    theta = {name: value.clone().requires_grad_() for name, value in setting.theta.items()}
    rate = torch.tensor(0.1, requires_grad=True)
    ends, total = setting.by_us(theta, first_order=True, lr=rate)
    by_rate, *by_theta = torch.autograd.grad(total, [rate, *theta.values()], retain_graph=True)
    at_end = torch.autograd.grad(total, list(ends.values()))
    travelled = sum((g * (ends[n] - theta[n]) / rate).sum().item() for n, g in zip(theta, at_end, strict=True))
    assert by_rate.item() == pytest.approx(travelled, rel=1e-10)
    for ours, expected in zip(by_theta, at_end, strict=True):
        torch.testing.assert_close(ours, expected.sum(0))


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.NAdam, optim.RMSprop, optim.Adagrad, optim.Adadelta])
def test_complex_parameters_are_pairs_of_real_ones(cls):
    begin = torch.tensor([1 + 2j, -0.5 + 0.1j])
    gradients = torch.tensor([[0.3 - 1j, 0.2 + 0.2j], [0.1 + 0.5j, -1 + 0j]])
    reference = begin.clone()
    optimizer = cls([reference], lr=0.1)
    theta = {"z": begin.unsqueeze(0)}
    update = differentiable_step(lambda values: cls(values, lr=0.1), theta, create_graph=False)
    for gradient in gradients:
        reference.grad = gradient
        optimizer.step()
        theta = update(theta, {"z": gradient.unsqueeze(0)})
    torch.testing.assert_close(theta["z"][0], reference, rtol=1e-10, atol=1e-12)


def test_a_state_given_beforehand_gets_its_gradient_and_may_differ_between_environments():
    velocity = torch.tensor([[1.0], [2.0]], requires_grad=True)

    def build(values):
        optimizer = optim.SGD(values, lr=0.5, momentum=0.8)
        optimizer.state[values[0]]["momentum_buffer"] = velocity
        return optimizer

    theta = {"w": torch.zeros(2, 1)}
    moved = differentiable_step(build, theta, create_graph=True)(theta, {"w": torch.ones(2, 1)})["w"]
    torch.testing.assert_close(moved, torch.tensor([[-0.9], [-1.3]]))
    torch.testing.assert_close(torch.autograd.grad(moved.sum(), velocity)[0], torch.full((2, 1), -0.4))


def test_parameters_in_no_group_stay_and_evaluation_keeps_no_graph():
    theta = {name: torch.ones(1, 2, requires_grad=True) for name in "ab"}
    rate = torch.tensor(0.5, requires_grad=True)
    update = differentiable_step(lambda values: optim.Adam(values[:1], lr=rate), theta, create_graph=False)
    moved = update(theta, theta)
    assert not moved["a"].requires_grad
    torch.testing.assert_close(moved["a"], torch.full((1, 2), 0.5))
    assert moved["b"] is theta["b"]


class OwnStep(optim.SGD):
    def step(self, closure=None):
        raise NotImplementedError


def hooked(values):
    optimizer = optim.SGD(values, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def scheduled(values):
    optimizer = optim.SGD(values, lr=0.1)
    optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


def with_state(cls, state, **options):
    def build(values):
        optimizer = cls(values, lr=0.1, **options)
        for value in values:
            optimizer.state[value] = dict(state)
        return optimizer

    return build


ELSEWHERE = optim.SGD([torch.zeros(1, 3)], lr=0.1)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (optim.LBFGS, ValueError, "torch.optim.lbfgs.LBFGS, which has no differentiable step; use SGD, .* Adadelta of"),
        (optim.SparseAdam, ValueError, "SparseAdam, which has"),
        (optim.Rprop, ValueError, "Rprop, which has"),
        (optim.ASGD, ValueError, "ASGD, which has"),
        (optim.Adamax, ValueError, "Adamax, which has"),
        (OwnStep, ValueError, "OwnStep, which has"),
        (lambda values: values, ValueError, "builtins.list, which has"),
        ("Adam", TypeError, "inner_optimizer='Adam' is of type str"),
        (hooked, ValueError, "SGD whose step was changed by a hook"),
        (scheduled, ValueError, "SGD whose step was changed by a hook, a scheduler"),
        (lambda values: ELSEWHERE, ValueError, r"over a tensor of shape \(1, 3\) that it was not given"),
        (
            lambda v: optim.Adam([{"params": v, "scale": 2.0}]),
            ValueError,
            "Adam does not know the option scale=2.0",
        ),
        (
            lambda v: optim.Adam([{"params": v, "eps": torch.ones(2)}]),
            ValueError,
            r"eps of shape \(2,\) must have one element",
        ),
        (
            lambda v: optim.SGD(v, momentum=torch.tensor(0.5), dampening=0.1),
            ValueError,
            "momentum can be a tensor only with dampening=0",
        ),
        (with_state(optim.Adam, {"step": 1}), ValueError, "state of Adam lacks exp_avg, exp_avg_sq"),
        (
            with_state(optim.SGD, {"momentum_buffer": torch.ones(3)}, momentum=0.9),
            ValueError,
            r"momentum_buffer in the state of SGD has shape \(3,\), but the parameter .* has \(1, 2\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_refusals(build, error, message):
    with pytest.raises(error, match=message):
        check_inner_optimizer(build, {"w": torch.ones(2)})


@table
def test_what_is_followed_is_not_refused(cls, row):
    setting = Setting(cls, row, "plain")
    before = {name: value.clone() for name, value in setting.theta.items()}
    check_inner_optimizer(setting.build, setting.theta)
    assert all(torch.equal(before[name], value) for name, value in setting.theta.items())
