"""The way to a gradient under shards, alone: whatever mesh, factor or unfinished sum of gradients there is."""

import pytest
import torch
from torch import nn

from lightning_gp.callbacks.shards import (
    FSDP_MODULE,
    as_stack,
    cosines,
    cosines_between,
    gradients_of_shards,
    inner_products,
    joined,
)
from lightning_gp.functional.gradients import cosine_similarity, gradient_norm, inner_product, pairwise_cosines
from lightning_gp.testing import on_processes

pytestmark = pytest.mark.skipif(not FSDP_MODULE, reason="FSDP2 needs torch >= 2.6")

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x):
        return self.scale * self.net(x).squeeze(1)


def stack_of(network, x, weights):
    """Rows of plain autograd: the gradient of each of these sums of outputs."""
    losses = network(x).square()
    found = [
        torch.autograd.grad(row @ losses, list(network.parameters()), retain_graph=True, materialize_grads=True)
        for row in weights
    ]
    return {
        name: torch.stack(each)
        for (name, _), each in zip(network.named_parameters(), zip(*found, strict=True), strict=True)
    }


def values_of(stack, other, norms):
    return torch.cat(
        [
            norms(stack),
            inner_products(stack, other),
            cosines(stack, other),
            cosines_between(stack).flatten(),
        ]
    )


def sharded_values(rank, shape, factor):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = Net()
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    for layer in (network.net[0], network.net, network.unused):
        fully_shard(layer, mesh=mesh if shape[0] > 1 else mesh["shard"])
        if factor is not None:
            getattr(layer, "set_gradient_divide_factor", layer.set_reduce_scatter_divide_factor)(factor)
    mine = X[4 * rank : 4 * rank + 4]
    parameters = dict(network.named_parameters())

    def gradients(weight=None):
        def losses():
            each = network(mine).square()
            return each if weight is None else each.mean().reshape(1)

        return gradients_of_shards(losses, parameters, network, lambda: weight)

    def norms(stack):
        return joined({"all": gradient_norm(stack)})["all"]

    # A gradient that training has left, and a sum that it has not yet ended.
    network(mine).sum().backward()
    left = {name: (each.grad, as_stack({name: each.grad})[name].clone()) for name, each in used(parameters)}
    network.net.set_requires_gradient_sync(False)
    network(mine).sum().backward()
    found = [values_of(gradients(), gradients(weight=4.0), norms), norms(gradients(weight=4.0))]
    for name, (gradient, numbers) in left.items():
        assert parameters[name].grad is gradient or name == "scale"
        if name != "scale":
            assert torch.equal(as_stack({name: gradient})[name], numbers)
    network.net.set_requires_gradient_sync(True)
    network(mine).sum().backward()
    for name, (_, numbers) in left.items():
        torch.testing.assert_close(as_stack({name: parameters[name].grad})[name], 3 * numbers)
    return found


def used(parameters):
    return [(name, each) for name, each in parameters.items() if "unused" not in name]


@pytest.mark.parametrize(("shape", "factor"), [((1, 2), None), ((1, 2), 1.0), ((2, 1), None)], ids=str)
def test_statistics_are_those_of_one_process(shape, factor):
    network = Net()
    each, total = stack_of(network, X, torch.eye(8).double()), stack_of(network, X, torch.ones(1, 8).double())
    wanted = torch.cat(
        [
            gradient_norm(each),
            inner_product(each, total),
            cosine_similarity(each, total),
            pairwise_cosines(each).flatten(),
        ]
    )
    for found, norm in on_processes(lambda rank: sharded_values(rank, shape, factor)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm, gradient_norm(total), rtol=1e-12, atol=0)


def test_parts_without_a_number_have_length_zero():
    empty = {"a": torch.zeros(2, 0), "b": torch.zeros(2, 0, 3)}
    assert torch.equal(gradient_norm(empty), torch.zeros(2))
    assert gradient_norm({**empty, "c": torch.ones(2, 4)}).tolist() == [2, 2]
