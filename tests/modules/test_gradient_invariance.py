"""IGA, Fishr, IB-IRM, AND-mask, GroupDRO and Fish against their definitions, written out one environment at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ERM, IBIRM, IGA, ANDMask, Environments, Fish, Fishr, GroupDRO, IRMv1
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.functional.held_constant import passing, recorded
from lightning_gp.functional.update_curvature import UpdateJacobian
from lightning_gp.modules.checks import handled_by
from lightning_gp.runs.training import quiet_trainer
from lightning_gp.testing import on_processes

BINARY = F.binary_cross_entropy_with_logits
OPTIONS = {
    IGA: {"penalty_weight": 3.0, "l2": 0.01},
    Fishr: {"penalty_weight": 3.0, "l2": 0.01, "head": "2"},
    IBIRM: {"penalty_weight": 3.0, "l2": 0.01, "bottleneck_weight": 0.7, "head": "2"},
    ANDMask: {"agreement": 0.7},
    GroupDRO: {"eta": 2.0},
    Fish: {"inner_lr": 0.3},
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def build(kind, **options):
    return kind(network(), criterion=BINARY, **OPTIONS[kind], **options)


def pairs(sizes):
    generator = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        x = torch.randn(size, 3, dtype=torch.float64, generator=generator)
        found.append((x, (x[:, :1] + torch.randn(size, 1, dtype=torch.float64, generator=generator) > 0).double()))
    return found


def batch(examples):
    if len({len(y) for _, y in examples}) == 1:
        return Environments(tuple(torch.stack(each) for each in zip(*examples, strict=True)))
    return [Environments((x.unsqueeze(0), y.unsqueeze(0))) for x, y in examples]


def gradient(value, parameters, **options):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, **options)])


def written_out(kind, net, examples):
    """The training loss and the update, one environment after the other, without a function of the package."""
    parameters = list(net.parameters())
    risks = torch.stack([BINARY(net(x), y) for x, y in examples])
    rows = torch.stack([gradient(risk, parameters, create_graph=True) for risk in risks])
    norm = 0.01 * sum(each.square().sum() for each in parameters)
    if kind is IGA:
        penalties = [(row - rows.mean(0)).square().sum() for row in rows]
        value = risks.mean() + 3 * torch.stack(penalties).mean() + norm
    elif kind is Fishr:
        variances = []
        for x, y in examples:
            each = [
                gradient(BINARY(net(x[i : i + 1]), y[i : i + 1]), list(net[2].parameters()), create_graph=True)
                for i in range(len(y))
            ]
            variances.append(torch.stack(each).var(0, correction=0))
        mean = torch.stack(variances).mean(0)
        value = risks.mean() + 3 * torch.stack([(v - mean).square().sum() for v in variances]).mean() + norm
    elif kind is IBIRM:
        terms = []
        for x, y in examples:
            scale = torch.ones((), dtype=x.dtype, requires_grad=True)
            (derivative,) = torch.autograd.grad(BINARY(scale * net(x), y), scale, create_graph=True)
            terms.append(3 * derivative.square() + 0.7 * net[:2](x).var(0, correction=0).mean())
        value = risks.mean() + torch.stack(terms).mean() + norm
    elif kind is GroupDRO:
        weights = (2 * risks.detach()).exp() / (2 * risks.detach()).exp().sum()
        value = (weights * risks).sum()
    elif kind is ANDMask:
        positive, negative = (rows > 0).double().mean(0), (rows < 0).double().mean(0)
        mask = (positive >= 0.7) | (negative >= 0.7)
        assert 0 < mask.sum() < len(mask)
        return risks.mean().detach(), (rows.mean(0) * mask).detach()
    return value.detach(), gradient(value, parameters)


def fish(net, examples, order):
    start = [each.detach().clone() for each in net.parameters()]
    losses = []
    for position in order:
        x, y = examples[position]
        loss = BINARY(net(x), y)
        losses.append(loss.detach())
        for value, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
            value.data -= 0.3 * g
    moved = [
        (before - after.detach()) / (0.3 * len(examples)) for before, after in zip(start, net.parameters(), strict=True)
    ]
    return torch.stack(losses).mean(), torch.cat([each.flatten() for each in moved])


@pytest.mark.parametrize("sizes", [(6, 6, 6), (7, 4, 9)], ids=["stacked", "list"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_loss_and_update_are_the_definition(kind, sizes):
    module, examples = build(kind), pairs(sizes)
    loss = module.training_loss(batch(examples))
    found = gradient(loss, list(module.network.parameters()))
    if kind is Fish:
        value, expected = fish(network(), examples, module.order(3))
    else:
        value, expected = written_out(kind, network(), examples)
    torch.testing.assert_close(loss.detach(), value, rtol=1e-11, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


# -- two processes ------------------------------------------------------------------------------------------------


def rank_gradients(rank):
    results = {}
    for kind in OPTIONS:
        for dealt in handled_by(build(kind)):
            module = build(kind)
            module.dealt = dealt
            (x, y), part = batch(pairs((8, 8, 8, 8))).support, slice(0, 3) if rank == 0 else slice(3, 8)
            own = (x[:, part], y[:, part]) if dealt == "shares" else (x[2 * rank :][:2], y[2 * rank :][:2])
            loss = module.training_loss(Environments(own))
            results[kind.__name__, dealt] = gradient(loss, list(module.network.parameters())).tolist()
    return results


def test_two_processes_give_the_update_of_one():
    ranks = on_processes(rank_gradients)
    assert len(ranks[0]) == 2 * len(OPTIONS) - 1  # Fish has shares alone
    for kind in OPTIONS:
        module = build(kind)
        expected = gradient(module.training_loss(batch(pairs((8, 8, 8, 8)))), list(module.network.parameters()))
        for dealt in handled_by(module):
            each = torch.tensor([rank[kind.__name__, dealt] for rank in ranks], dtype=torch.float64)
            torch.testing.assert_close(each.mean(0), expected, rtol=1e-10, atol=1e-13, msg=f"{kind.__name__}, {dealt}")


# -- what callbacks and maps differentiate ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GroupDRO, ANDMask, Fish])
def test_the_jacobian_of_the_update_is_that_of_finite_differences(kind):
    module, data = build(kind), batch(pairs((6, 6, 6)))
    parameters = module.network_parameters()
    jacobian = UpdateJacobian(lambda theta: module.environment_objectives(theta, data).mean(), parameters)
    assert not jacobian.symmetric
    values = list(module.network.parameters())
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(2, jacobian.size, dtype=torch.float64, generator=generator)
    updates = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(values) + (1 if sign == 1 else -2) * 1e-5 * right, values
        )
        updates.append(gradient(module.training_loss(data), values))
    assert torch.dot(jacobian(left), right).item() == pytest.approx(
        torch.dot(left, updates[0] - updates[1]).item() / 2e-5, rel=1e-6
    )


def test_constants_pass_while_the_update_is_differentiated():
    module, data = build(GroupDRO), batch(pairs((6, 6)))
    with recorded() as recording:
        value = module.environment_objectives(module.network_parameters(), data).mean()
        update = gradient(value, list(module.network.parameters()), create_graph=True)
    with passing(recording):
        assert gradient(update.sum(), list(module.network.parameters())).norm() > 0


# -- limits and refusals ------------------------------------------------------------------------------------------


def test_without_what_they_add_they_are_the_simpler_algorithm():
    data, erm = batch(pairs((6, 6))), ERM(network(), criterion=BINARY)
    expected = gradient(erm.training_loss(data), list(erm.network.parameters()))
    for module in (
        IGA(network(), penalty_weight=0.0, criterion=BINARY),
        Fishr(network(), penalty_weight=0.0, head="2", criterion=BINARY),
        GroupDRO(network(), eta=0.0, criterion=BINARY),
        ANDMask(network(), agreement=0.1, criterion=BINARY),
        Fish(network(), inner_lr=1e-13, criterion=BINARY),
    ):
        found = gradient(module.training_loss(data), list(module.network.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    pair = [kind(network(), 3.0, criterion=BINARY, **own) for kind, own in ((IRMv1, {}), (IBIRM, {"head": "2"}))]
    pair[1].bottleneck_weight = 0.0
    torch.testing.assert_close(*(module.training_loss(data) for module in pair))


def test_fish_goes_another_way_in_every_step(monkeypatch):
    module = build(Fish)
    monkeypatch.setattr(Fish, "global_step", 0)
    first = module.order(5)
    assert first == module.order(5)
    assert sorted(first) == list(range(5))
    monkeypatch.setattr(Fish, "global_step", 1)
    assert module.order(5) != first


def test_refusals():
    with pytest.raises(ValueError, match="agreement=0"):
        ANDMask(network(), agreement=0.0)
    with pytest.raises(ValueError, match="eta=-1"):
        GroupDRO(network(), eta=-1.0)
    with pytest.raises(ValueError, match="inner_lr=0"):
        Fish(network(), inner_lr=0.0)
    for kind in (Fishr, IBIRM):
        with pytest.raises(ValueError, match=r"head='head' names no layer of Sequential; there are \['0', '1', '2'\]"):
            kind(network())
    with pytest.raises(ValueError, match="bottleneck_weight=-1"):
        IBIRM(network(), bottleneck_weight=-1.0, head="2")
    with pytest.raises(ValueError, match="head='1': Tanh has no trained parameter"):
        Fishr(network(), head="1")
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)).double()
    with pytest.raises(ValueError, match="Fishr needs"):
        Fishr(normed, head="2", criterion=BINARY).training_loss(batch(pairs((6, 6))))
    with pytest.raises(ValueError, match="couples the environments"):
        IGA(network(), weighting="mgda")


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_environments_of_equal_size_are_evaluated_in_inference_mode(kind, stage):
    """Their batch is stacked where the loader is made, which Lightning does in inference mode."""
    named = dict(zip("ab", pairs((6, 6)), strict=True))
    module = build(kind)
    (found,) = getattr(quiet_trainer("cpu"), stage)(module, ExampleEnvironments(named, test=named), verbose=False)
    with torch.no_grad():
        losses = [BINARY(module.network(x), y).item() for x, y in named.values()]
    assert found[f"{stage.removesuffix('idate')}/loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
