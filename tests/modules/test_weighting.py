"""``weighting=``: the update is Jᵀw of a dense Jacobian, with weights found by brute force."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_gp import ERM, MAML, Environments, GradientPenalty, IRMv1, REx
from lightning_gp.callbacks import LearningRateBounds
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.functional.weightings import WEIGHTINGS, gram_matrix, mgda_weights, pcgrad_weights, upgrad_weights
from lightning_gp.testing import on_processes
from tests.modules.test_gradient_invariance import BINARY, batch, gradient, network, pairs


def softmax(losses, gram):
    return losses.exp() / losses.exp().sum()


def by_angle(losses, gram):
    """Of the user: both arguments count."""
    return losses / gram.diagonal().sqrt()


def projected(losses, gram):
    """PCGrad on vectors, the worst cosine first."""
    rows = torch.linalg.cholesky(gram + 1e-14 * torch.eye(len(gram), dtype=gram.dtype))
    found = []
    for i, row in enumerate(rows):
        cosines = [float(F.cosine_similarity(row, other, 0)) for other in rows]
        coefficients = torch.eye(len(rows), dtype=gram.dtype)[i]
        for j in sorted(range(len(rows)), key=cosines.__getitem__):
            product = row @ rows[j]
            if j != i and product < 0:
                row = row - product / (rows[j] @ rows[j]) * rows[j]
                coefficients[j] -= product / (rows[j] @ rows[j])
        found.append(coefficients)
    return torch.stack(found).mean(0)


def by_active_sets(gram, lower, equal):
    """argmin vᵀ G v with v ≥ lower and, if ``equal``, Σ v = 1: of all sets of tight bounds the best that is allowed."""
    count, best = len(gram), (float("inf"), None)
    for size in range(1, count + 1):
        for free in map(list, combinations(range(count), size)):
            tight = [i for i in range(count) if i not in free]
            system, target = gram[free][:, free], -gram[free][:, tight] @ lower[tight]
            if equal:
                ones = torch.ones(size, 1, dtype=gram.dtype)
                corner = torch.zeros(1, 1, dtype=gram.dtype)
                system = torch.cat([torch.cat([system, ones], 1), torch.cat([ones.T, corner], 1)])
                target = torch.cat([target, torch.ones(1, dtype=gram.dtype)])
            v = lower.clone()
            v[free] = torch.linalg.solve(system, target)[:size]
            value = float(v @ gram @ v)
            if bool((v >= lower - 1e-12).all()) and value < best[0]:
                best = value, v
    if not equal and float(lower @ gram @ lower) < best[0]:
        return lower
    return best[1]


def shortest(losses, gram):
    return by_active_sets(gram, torch.zeros(len(gram), dtype=gram.dtype), equal=True)


def unconflicting(losses, gram):
    units = torch.eye(len(gram), dtype=gram.dtype)
    return torch.stack([by_active_sets(gram, unit, equal=False) for unit in units]).mean(0)


REFERENCES = {
    "group_dro": softmax,
    "mgda": shortest,
    "pcgrad": projected,
    "upgrad": unconflicting,
    by_angle: by_angle,
}


@pytest.mark.parametrize("sizes", [(6, 6, 6), (7, 4, 9)], ids=["stacked", "list"])
@pytest.mark.parametrize("weighting", REFERENCES, ids=lambda each: getattr(each, "__name__", each))
@pytest.mark.parametrize(
    "kind", [ERM, partial(IRMv1, penalty_weight=2.0), partial(GradientPenalty, coefficient=0.3), MAML]
)
def test_the_update_is_that_of_the_dense_jacobian(kind, weighting, sizes):
    data = batch(pairs(sizes))
    plain = kind(network(), criterion=BINARY)
    parameters = list(plain.network.parameters())
    losses = torch.cat(
        [
            plain.environment_objectives(plain.network_parameters(), one)
            for each in ([data] if isinstance(data, Environments) else data)
            for one in each.chunks(1)
        ]
    )
    jacobian = torch.stack([gradient(each, parameters, retain_graph=True) for each in losses])
    weights = REFERENCES[weighting](losses.detach(), jacobian @ jacobian.T)
    module = kind(network(), criterion=BINARY, weighting=weighting)
    loss = module.training_loss(data)
    found = gradient(loss, list(module.network.parameters()))
    torch.testing.assert_close(found, jacobian.T @ weights, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.detach(), weights @ losses.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(mgda_weights, shortest), (upgrad_weights, unconflicting), (pcgrad_weights, projected)],
    ids=["mgda", "upgrad", "pcgrad"],
)
@pytest.mark.parametrize("seed", range(6))
def test_weights_of_conflicting_gradients_are_those_by_brute_force(seed, found, expected):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    gram, losses = gram_matrix({"w": rows - 1.2 * rows.mean(0)}), torch.zeros(4, dtype=torch.float64)
    assert (gram < 0).any()
    torch.testing.assert_close(found(losses, gram), expected(losses, gram), rtol=1e-8, atol=1e-10)
    order = torch.randperm(4, generator=generator)
    again = found(losses, gram[order][:, order])
    torch.testing.assert_close(again, found(losses, gram)[order], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_environments_that_agree_and_those_without_a_gradient_get_the_mean(weighting):
    losses = torch.ones(3, dtype=torch.float64)
    for gram in (torch.ones(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)):
        weights = WEIGHTINGS[weighting](losses, gram)
        assert weights.sum().item() == pytest.approx(1)


def test_the_mean_is_bitwise_what_it_is_without():
    data = batch(pairs((6, 6, 6)))
    losses = [ERM(network(), criterion=BINARY, **each).training_loss(data) for each in ({}, {"weighting": "mean"})]
    assert losses[0].item() == losses[1].item()


def rank_gradients(rank):
    (x, y), part = batch(pairs((8, 8, 8, 8))).support, slice(0, 3) if rank == 0 else slice(3, 8)
    results = {}
    for weighting in WEIGHTINGS:
        for dealt in ("shares", "episodes"):
            module = ERM(network(), criterion=BINARY, weighting=weighting)
            module.dealt = dealt
            own = (x[:, part], y[:, part]) if dealt == "shares" else (x[2 * rank :][:2], y[2 * rank :][:2])
            loss = module.training_loss(Environments(own))
            results[weighting, dealt] = gradient(loss, list(module.network.parameters())).tolist()
    return results


@pytest.mark.slow
def test_two_processes_weigh_all_environments():
    ranks = on_processes(rank_gradients)
    for weighting, dealt in ranks[0]:
        module = ERM(network(), criterion=BINARY, weighting=weighting)
        expected = gradient(module.training_loss(batch(pairs((8, 8, 8, 8)))), list(module.network.parameters()))
        each = torch.tensor([rank[weighting, dealt] for rank in ranks], dtype=torch.float64)
        torch.testing.assert_close(each.mean(0), expected, rtol=1e-9, atol=1e-12, msg=f"{weighting}, {dealt}")


def fitted(tmp_path, weighting, sizes=(6, 6), **options):
    module = ERM(network(), criterion=BINARY, weighting=weighting)
    data = ExampleEnvironments(dict(zip("ab", pairs(sizes), strict=True)), steps_per_epoch=2)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer.callback_metrics


def test_weights_are_logged_by_name(tmp_path):
    logged = fitted(tmp_path, "group_dro", (7, 5), accumulate_grad_batches=2)
    weights = [float(logged[f"train/weight/{name}"]) for name in "ab"]
    losses = torch.stack([BINARY(network()(x), y) for x, y in pairs((7, 5))])  # the two batches share their weights
    assert weights == pytest.approx(losses.softmax(0).tolist(), rel=1e-6)


def test_the_edge_knows_differentiable_weights_and_refuses_others(tmp_path):
    fitted(tmp_path, "pcgrad", callbacks=[LearningRateBounds()])
    with pytest.raises(ValueError, match="weights of mgda_weights have no derivative"):
        fitted(tmp_path, "mgda", callbacks=[LearningRateBounds()])


def test_refusals():
    with pytest.raises(ValueError, match="weighting='median' is unknown"):
        ERM(network(), weighting="median")
    with pytest.raises(TypeError, match="weighting=3"):
        ERM(network(), weighting=3)
    with pytest.raises(ValueError, match="REx couples the environments"):
        REx(network(), weighting="upgrad")
    with pytest.raises(ValueError, match=r"gave shape \(\)"):
        ERM(network(), criterion=BINARY, weighting=lambda losses, gram: losses.sum()).training_loss(
            batch(pairs((6, 6)))
        )
    with pytest.raises(ValueError, match="not finite"):
        mgda_weights(torch.zeros(2), torch.full((2, 2), float("nan")))
