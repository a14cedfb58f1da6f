"""The low-rank form against ``adapt``: values, meta-gradients and second derivatives, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_gp.functional import low_rank
from lightning_gp.functional.adaptation import adapt, over_environments
from lightning_gp.functional.chains import ELEMENTWISE, chain_of
from lightning_gp.functional.held_constant import passing, recorded
from lightning_gp.networks import ColoredMNISTMLP, SinusoidMLP


def mlp(*between):
    return nn.Sequential(nn.Linear(3, 5), *between, nn.Linear(5, 2))


NETWORKS = {
    **{kind.__name__: lambda kind=kind: mlp(kind()) for kind in ELEMENTWISE},
    "in place": lambda: mlp(nn.LeakyReLU(0.1, inplace=True), nn.Linear(5, 5), nn.ELU(inplace=True)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh()), nn.Linear(5, 2), nn.SiLU()),
    "normalised": lambda: nn.Sequential(nn.LayerNorm(3), *mlp(nn.Tanh(), nn.LayerNorm(5))),
    "normalised without weights": lambda: mlp(nn.LayerNorm(5, elementwise_affine=False), nn.Tanh()),
    "normalised without biases": lambda: mlp(nn.LayerNorm(5, bias=False), nn.Tanh()),
    "SinusoidMLP": lambda: SinusoidMLP((5, 4), in_features=3, out_features=2),
    "one layer": lambda: nn.Linear(3, 2),
}
OPTIONS = {
    "one step": {},
    "three steps": {"steps": 3},
    "first order": {"steps": 3, "first_order": True},
    "weights": {"steps": 2, "part": "weight"},
    "biases": {"steps": 2, "part": "bias"},
    "last layer": {"steps": 3, "part": "last"},
    "all but the last": {"steps": 2, "part": "body"},
    "one learned rate": {"steps": 2, "rates": "one"},
    "rates": {"steps": 2, "rates": "numbers"},
    "learned rates": {"steps": 2, "rates": "learned"},
    "rates of elements": {"steps": 2, "rates": "elements"},
}


def problem(network, steps=1, first_order=False, part="", rates="", shape=(4, 6, 3), targets=2):
    """The arguments of ``adapt`` and of the low-rank form, with the tensors to differentiate by."""
    torch.manual_seed(0)
    count, examples, *features = shape
    support = torch.randn(shape).double(), torch.randn(count, examples, targets).double()
    query = torch.randn(count, 4, *features).double(), torch.randn(count, 4, targets).double()
    parameters = dict(network.double().named_parameters())
    last = [name for name in parameters if name.startswith(next(reversed(parameters)).rpartition(".")[0])]
    picked = {
        "last": last,
        "body": [name for name in parameters if name not in last] or last,
        "": None,
    }
    adapted = picked[part] if part in picked else [name for name in parameters if name.endswith(part)]
    names = list(parameters) if adapted is None else adapted
    lr = {
        "": 0.3,
        "one": torch.tensor(0.3, dtype=torch.float64, requires_grad=True),
        "numbers": {name: 0.1 + 0.05 * index for index, name in enumerate(names)},
        "learned": {name: torch.tensor(0.2, dtype=torch.float64, requires_grad=True) for name in names},
        "elements": {name: (0.3 * torch.rand_like(parameters[name])).requires_grad_() for name in names},
    }[rates]
    leaves = [*parameters.values()]
    leaves += [rate for rate in (lr.values() if isinstance(lr, dict) else [lr]) if isinstance(rate, torch.Tensor)]
    arguments = {"lr": lr, "steps": steps, "first_order": first_order, "adapted": adapted}
    return parameters, support, query, arguments, leaves


def by_adapt(network, parameters, support, query, arguments, criterion=F.mse_loss):
    def loss(own, x, y):
        return criterion(functional_call(network, own, (x,)), y)

    path = adapt(loss, parameters, support, **arguments)
    return over_environments(loss, path.parameters[-1], path.shared, *query)


def by_low_rank(network, parameters, support, query, arguments, criterion=F.mse_loss):
    def losses(outputs, y):
        return torch.vmap(criterion)(outputs, y)

    return low_rank.adapted_losses(chain_of(network), parameters, support, query, losses, **arguments)


def derivatives(losses, leaves):
    """Losses, the gradient of their weighted sum, and a product with its Hessian."""
    weights = torch.linspace(1, 2, len(losses), dtype=torch.float64)
    gradients = torch.autograd.grad((weights * losses).sum(), leaves, create_graph=True, materialize_grads=True)
    product = sum(
        (gradient * torch.cos(torch.arange(gradient.numel())).view_as(gradient)).sum() for gradient in gradients
    )
    second = torch.autograd.grad(product, leaves, materialize_grads=True)
    return losses, torch.cat([each.flatten() for each in gradients]), torch.cat([each.flatten() for each in second])


def assert_same(network, options, **shapes):
    parameters, support, query, arguments, leaves = problem(network, **options, **shapes)
    expected = derivatives(by_adapt(network, parameters, support, query, arguments), leaves)
    found = derivatives(by_low_rank(network, parameters, support, query, arguments), leaves)
    for value, reference in zip((each.detach() for each in found), expected, strict=True):
        assert float((value - reference).norm()) <= 1e-10 * float(reference.norm()) + 1e-14


@pytest.fixture(params=["low rank", "weights", "by cost"])
def form(request, monkeypatch):
    limit = {"low rank": math.inf, "weights": 0.0}.get(request.param, low_rank.PAIRS_PER_WEIGHT)
    monkeypatch.setattr(low_rank, "PAIRS_PER_WEIGHT", limit)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, form):
    assert_same(NETWORKS[name](), {"steps": 2})


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("network", ["nested", "normalised", "SinusoidMLP"])
def test_options(name, network, form):
    assert_same(NETWORKS[network](), OPTIONS[name])


def test_examples_of_several_rows(form):
    network = nn.Sequential(
        nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2), nn.Flatten(), nn.Linear(10, 2)
    )
    assert_same(network, {"steps": 2}, shape=(3, 4, 5, 3))


def test_images(form):
    assert_same(ColoredMNISTMLP(4, 2, 1, 3), {"steps": 2}, shape=(3, 4, 1, 3, 3), targets=1)


def test_a_single_environment(form):
    assert_same(NETWORKS["SinusoidMLP"](), {"steps": 2}, shape=(1, 6, 3))


def test_what_first_order_holds_constant_keeps_its_graph_while_the_update_is_recorded(form):
    network = NETWORKS["nested"]()
    parameters, support, query, arguments, leaves = problem(network, steps=2, first_order=True)
    products = []
    for compute in (by_adapt, by_low_rank):
        with recorded() as recording:
            total = compute(network, parameters, support, query, arguments).sum()
            update = torch.autograd.grad(total, leaves, create_graph=True)
        assert recording.used
        with passing(recording):
            products.append(torch.autograd.grad(sum(each.sin().sum() for each in update), leaves))
    for value, reference in zip(*products, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)


def test_no_weights_of_environments_are_formed():
    """The largest tensor that autograd keeps is no E copies of a weight."""
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    parameters, support, query, arguments, _ = problem(network, shape=(20, 3, 64), targets=64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t):
        by_low_rank(network, parameters, support, query, arguments).sum().backward()
    assert max(sizes) < 20 * 64 * 64 / 2


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    network = mlp(nn.Tanh())
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def replaced():
    network = mlp(nn.Tanh())
    network.forward = lambda x: x
    return network


UNKNOWN = {
    "dropout": lambda: mlp(nn.Dropout()),
    "batch norm": lambda: mlp(nn.BatchNorm1d(5, track_running_stats=False)),
    "a subclass": lambda: nn.Sequential(Doubled(3, 2)),
    "a hook": hooked,
    "another forward": replaced,
    "a parametrization": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))),
    "flattened examples": lambda: mlp(nn.Flatten(0)),
    "images normalised": lambda: mlp(nn.LayerNorm((4, 5))),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_no_chain(name):
    assert chain_of(UNKNOWN[name]()) is None


def test_global_hooks_are_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert chain_of(mlp(nn.Tanh())) is None
    finally:
        handle.remove()
