"""``theory.optimizers`` against the spectral radius of the real step of ``torch.optim``, linearised by differences."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import NAdam, Optimizer, RMSprop

from lightning_gp.theory.optimizers import update_rule
from lightning_gp.theory.recursion import Recursion

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "sgd": partial(SGD, lr=1.0),
    "momentum": partial(SGD, lr=1.0, momentum=0.9),
    "dampening": partial(SGD, lr=1.0, momentum=0.8, dampening=0.3),
    "nesterov": partial(SGD, lr=1.0, momentum=0.9, nesterov=True),
    "coupled decay": partial(SGD, lr=1.0, momentum=0.5, weight_decay=0.3),
    "adam": partial(Adam, lr=1.0),
    "adam, long memory": partial(Adam, lr=1.0, betas=(0.97, 0.99), eps=1e-2),
    "adam, coupled decay": partial(Adam, lr=1.0, weight_decay=0.2),
    "amsgrad": partial(Adam, lr=1.0, amsgrad=True),
    "adamw": partial(AdamW, lr=1.0, weight_decay=0.2),
    "adamw, amsgrad": partial(AdamW, lr=1.0, weight_decay=0.01, amsgrad=True),
    "nadam": partial(NAdam, lr=1.0),
    "nadam, slow schedule": partial(NAdam, lr=1.0, momentum_decay=1e-5),
    "nadam, decoupled decay": partial(NAdam, lr=1.0, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": partial(torch.optim.RAdam, lr=1.0, betas=(0.9, 0.99)),
    "adamax": partial(torch.optim.Adamax, lr=1.0),
    "rmsprop": partial(RMSprop, lr=1.0),
    "rmsprop, momentum": partial(RMSprop, lr=1.0, momentum=0.7),
    "rmsprop, centered": partial(RMSprop, lr=1.0, centered=True, momentum=0.3, weight_decay=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=1.0, lr_decay=0.01),
}
BUFFERS = ("exp_avg", "momentum_buffer")
SIZE = 3


class Quadratic:
    """½ θᵀHθ in two parameters of 1 and 2 numbers, with a factor between the rates of their groups."""

    def __init__(self, build, factor=1.0):
        torch.manual_seed(3)
        matrix = torch.randn(SIZE, SIZE, dtype=torch.float64)
        self.hessian = matrix @ matrix.T / SIZE + 0.2 * torch.eye(SIZE)
        self.parameters = {name: nn.Parameter(torch.randn(n, dtype=torch.float64)) for name, n in (("a", 1), ("b", 2))}
        a, b = self.parameters.values()
        self.factor = factor
        self.optimizer = build([{"params": [a]}, {"params": [b], "lr": factor * build.keywords["lr"]}])
        # Gradients of noise, so that second moments are far from 0 and differ; then the weights at the minimum.
        for _ in range(40):
            for each in (a, b):
                each.grad = torch.randn_like(each) * torch.arange(1, each.numel() + 1)
            self.optimizer.step()

    def set_rate(self, rate):
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.factor), strict=True):
            group["lr"] = rate * factor

    def buffers(self):
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            found = [state[name] for name in BUFFERS if isinstance(state.get(name), torch.Tensor)]
            yield found[0] if found else torch.zeros_like(parameter)

    def put(self, vector):
        pieces = vector.split([1, 2, 1, 2])
        with torch.no_grad():
            for place, piece in zip([*self.parameters.values(), *self.buffers()], pieces, strict=True):
                place.copy_(piece)

    def read(self):
        return torch.cat([*[p.detach().clone() for p in self.parameters.values()], *self.buffers()])

    def step(self):
        theta = torch.cat([each.detach() for each in self.parameters.values()])
        for each, gradient in zip(self.parameters.values(), (self.hessian @ theta).split([1, 2]), strict=True):
            each.grad = gradient.clone()
        self.optimizer.step()

    def spectral_radius(self, rate):
        """Of the derivative of one real step by weights and buffers, at the minimum."""
        self.set_rate(rate)
        saved = copy.deepcopy(self.optimizer.state_dict())
        size, columns = 1e-6, []
        for i in range(2 * SIZE):
            ends = []
            for sign in (1, -1):
                self.optimizer.load_state_dict(copy.deepcopy(saved))
                self.set_rate(rate)
                self.put(sign * size * torch.eye(2 * SIZE, dtype=torch.float64)[i])
                self.step()
                ends.append(self.read())
            columns.append((ends[0] - ends[1]) / (2 * size))
        after = update_rule(self.optimizer)  # the second moments with which the step was taken
        self.optimizer.load_state_dict(saved)
        return float(torch.linalg.eigvals(torch.stack(columns, 1)).abs().max()), after

    def curvature(self, rule):
        root = rule.root_scales(self.parameters)
        decay = rule.coupled_decay(self.parameters)
        hessian = self.hessian if decay is None else self.hessian + torch.diag(decay)
        return float(torch.linalg.eigvalsh(root[:, None] * hessian * root).max())


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_real_step_is_at_the_edge_at_the_critical_rate(name, factor):
    if name == "nadam, slow schedule" and factor != 1:
        pytest.skip("one schedule is enough")
    problem = Quadratic(OPTIMIZERS[name], factor)
    # The rule is of the moments at the coming step, so it is read after one.
    _, rule = problem.spectral_radius(1e-3)
    if name.startswith("nadam"):  # whose schedule has gone on by one
        rule = _with_recursion(rule, problem)
    critical = rule.critical_rate(problem.curvature(rule))
    radius, _ = problem.spectral_radius(critical)
    # One w stands for all groups, though each shrinks by its own β w.
    slack = critical * rule.decay if factor != 1 else 0.0
    assert radius == pytest.approx(1.0, abs=1e-8 + slack)
    assert slack or problem.spectral_radius(0.98 * critical)[0] < 1 < problem.spectral_radius(1.02 * critical)[0]


def _with_recursion(rule, problem):
    from dataclasses import replace

    return replace(rule, recursion=update_rule(problem.optimizer).recursion)


@pytest.mark.parametrize("curvature", [5.0, 2 + 3j, 1 + 0.1j, 0.5 + 4j])
@pytest.mark.parametrize(
    "recursion",
    [Recursion(), Recursion(0.9), Recursion(0.9, 1.0, 1.0, 0.9), Recursion(0.9, 0.1), Recursion(0.9, 0.1, 0.1, 0.9)],
)
def test_complex_curvatures_are_at_the_edge_too(recursion, curvature):
    """Against the eigenvalues of the recursion's matrix, written out."""
    rate = recursion.critical_rate(curvature, 0.1)
    c, mu, gain = curvature, recursion.momentum, recursion.gain
    for factor in (0.9, 1.0, 1.1):
        beta = factor * rate
        direct = recursion.direct + recursion.buffered * gain
        matrix = torch.tensor(
            [[1 - beta * 0.1 - beta * c * direct, -beta * recursion.buffered * mu], [gain * c, mu]],
            dtype=torch.complex128,
        )
        radius = float(torch.linalg.eigvals(matrix).abs().max())
        assert recursion.spectral_radius(curvature, beta, 0.1) == pytest.approx(radius, rel=1e-9)
        assert radius == pytest.approx(1, abs=1e-9) if factor == 1 else (radius < 1) == (factor < 1)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_run_diverges_beyond_the_critical_rate_and_not_below(name, factor):
    """Many real steps with the second moments held, from a small distance."""
    problem = Quadratic(OPTIMIZERS[name])
    for parameter in problem.parameters.values():
        for key in BUFFERS:
            if isinstance(problem.optimizer.state[parameter].get(key), torch.Tensor):
                problem.optimizer.state[parameter][key].zero_()
    rule = update_rule(problem.optimizer)
    problem.set_rate(factor * rule.critical_rate(problem.curvature(rule)))
    with torch.no_grad():
        for parameter in problem.parameters.values():
            parameter.fill_(1e-6)
    held = copy.deepcopy(problem.optimizer.state_dict()["state"])
    for _ in range(300):
        problem.step()
        for place, state in zip(problem.parameters.values(), held.values(), strict=True):
            for key in state:
                if key not in BUFFERS:
                    problem.optimizer.state[place][key] = copy.deepcopy(state[key])
    distance = max(float(parameter.detach().abs().max()) for parameter in problem.parameters.values())
    assert (distance > 1e-4) == (factor > 1)


def test_what_is_not_known_says_so():
    weight = nn.Parameter(torch.ones(2))

    class Own(Optimizer):
        def step(self):
            pass

    class Changed(torch.optim.SGD):
        def step(self, closure=None):
            pass

    for optimizer in (Own([weight], {}), Changed([weight], lr=0.1), torch.optim.LBFGS([weight])):
        with pytest.raises(ValueError, match="is not known here"):
            update_rule(optimizer)
    with pytest.raises(ValueError, match="ascends"):
        update_rule(SGD([weight], lr=0.1, maximize=True))
    groups = [{"params": [weight]}, {"params": [nn.Parameter(torch.ones(1))], "momentum": 0.5}]
    with pytest.raises(ValueError, match="differ in momentum"):
        update_rule(SGD(groups, lr=0.1))


def test_before_the_first_step_and_at_rate_0():
    weight = nn.Parameter(torch.ones(2))
    assert not update_rule(Adam([weight])).moves
    rule = update_rule(SGD([weight], lr=0.0))
    assert rule.moves
    assert rule.edge(4.0) == 0
    assert rule.critical_rate(4.0) == 0.5


def test_a_subclass_with_the_same_step_is_known():
    class Mine(torch.optim.SGD):
        pass

    weight = nn.Parameter(torch.ones(2))
    assert update_rule(Mine([weight], lr=0.5)).critical_rate(4.0) == 0.5


def test_parameters_that_do_not_move_have_no_share():
    moved, still = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    rule = update_rule(SGD([moved], lr=0.1))
    assert rule.root_scales({"moved": moved, "still": still}).tolist() == [1, 0, 0]
