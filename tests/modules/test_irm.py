import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.environments import Environments
from lightning_gp.modules.erm import ERM
from lightning_gp.modules.irm import IRMv1, REx
from lightning_gp.testing import on_processes

BINARY = F.binary_cross_entropy_with_logits


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def environment(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 3, dtype=torch.float64, generator=generator)
    y = (x[:, :1] + torch.randn(examples, 1, dtype=torch.float64, generator=generator) > 0).double()
    return x, y


def stacked(sizes=(8, 8, 8)):
    pairs = [environment(size, seed) for seed, size in enumerate(sizes)]
    return Environments((torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])))


def unequal(sizes=(8, 5)):
    pairs = [environment(size, seed) for seed, size in enumerate(sizes)]
    return [Environments((x.unsqueeze(0), y.unsqueeze(0))) for x, y in pairs]


def gradient(module, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.network.parameters()))])


def reference(module, pairs, weight, l2=0.0, divisor=1.0, criterion=BINARY):
    """The definition, with a double backward through the scale."""
    terms = []
    for x, y in pairs:
        scale = torch.ones((), dtype=x.dtype, requires_grad=True)
        loss = criterion(scale * module.network(x), y)
        (derivative,) = torch.autograd.grad(loss, scale, create_graph=True)
        terms.append(loss + weight * derivative.square())
    norm = sum(parameter.square().sum() for parameter in module.network.parameters())
    return (torch.stack(terms).mean() + l2 * norm) / divisor


@pytest.mark.parametrize("vectorize", [True, False, "auto"])
@pytest.mark.parametrize("criterion", [BINARY, F.mse_loss, F.smooth_l1_loss])
def test_loss_and_gradient_are_the_definition(criterion, vectorize):
    module = IRMv1(network(), penalty_weight=7.0, criterion=criterion, vectorize=vectorize)
    batch = stacked()
    expected = reference(module, zip(*batch.support, strict=True), 7.0, criterion=criterion)
    loss = module.training_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(module, loss), gradient(module, expected), rtol=1e-12, atol=1e-14)


def test_cross_entropy():
    torch.manual_seed(0)
    module = IRMv1(nn.Linear(3, 4).double(), penalty_weight=3.0)
    x, y = torch.randn(2, 6, 3).double(), torch.randint(4, (2, 6))
    expected = reference(module, zip(x, y, strict=True), 3.0, criterion=F.cross_entropy)
    loss = module.training_loss(Environments((x, y)))
    torch.testing.assert_close(gradient(module, loss), gradient(module, expected), rtol=1e-12, atol=1e-14)


def test_environments_of_unequal_size():
    module = IRMv1(network(), penalty_weight=7.0, criterion=BINARY)
    batch = unequal()
    expected = reference(module, [(e.support[0][0], e.support[1][0]) for e in batch], 7.0)
    loss = module.training_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(module, loss), gradient(module, expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (4, 1.0), (5, 100.0)])
def test_tricks_of_the_paper(step, weight, monkeypatch):
    module = IRMv1(network(), penalty_weight=100.0, anneal_steps=5, rescale_loss=True, l2=0.01, criterion=BINARY)
    monkeypatch.setattr(IRMv1, "global_step", step)
    batch = stacked()
    expected = reference(module, zip(*batch.support, strict=True), weight, l2=0.01, divisor=weight)
    loss = module.training_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(module, loss), gradient(module, expected), rtol=1e-12, atol=1e-14)


def test_without_penalty_it_is_erm():
    module, batch = IRMv1(network(), penalty_weight=0.0, criterion=BINARY), stacked()
    erm = ERM(module.network, criterion=BINARY)
    torch.testing.assert_close(module.training_loss(batch), erm.training_loss(batch), rtol=1e-14, atol=0)


def test_unbiased_halves():
    module = IRMv1(network(), penalty_weight=7.0, criterion=BINARY, unbiased=True)
    batch = stacked()
    parameters = module.network_parameters()
    for (x, y), objective in zip(
        zip(*batch.support, strict=True), module.environment_objectives(parameters, batch), strict=True
    ):
        halves = []
        for part in (slice(0, None, 2), slice(1, None, 2)):
            scale = torch.ones((), dtype=x.dtype, requires_grad=True)
            loss = BINARY(scale * module.network(x[part]), y[part])
            halves.append(torch.autograd.grad(loss, scale)[0])
        expected = BINARY(module.network(x), y) + 7 * halves[0] * halves[1]
        torch.testing.assert_close(objective, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch", [stacked(), unequal()], ids=["stacked", "list"])
@pytest.mark.parametrize("vectorize", [True, 1])
def test_rex_is_the_variance_of_the_risks(batch, vectorize):
    module = REx(network(), penalty_weight=7.0, criterion=BINARY, vectorize=vectorize)
    batches = [batch] if isinstance(batch, Environments) else batch
    pairs = [pair for item in batches for pair in zip(*item.support, strict=True)]
    risks = torch.stack([BINARY(module.network(x), y) for x, y in pairs])
    expected = risks.mean() + 7 * risks.var(correction=0)
    loss = module.training_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(module, loss), gradient(module, expected), rtol=1e-12, atol=1e-14)


# -- two processes ----------------------------------------------------------------------------------------------


def _rank_gradient(kind, share, rank):
    batch = stacked((8, 8))
    x, y = batch.support
    if share == "shares":  # of unequal size: 3 and 5 of the 8 examples of both environments
        part = slice(0, 3) if rank == 0 else slice(3, 8)
        batch = Environments((x[:, part], y[:, part]))
    else:
        batch = Environments((x[rank : rank + 1], y[rank : rank + 1]))
    module = kind(network(), penalty_weight=7.0, l2=0.01, criterion=BINARY, dealt=share)
    return gradient(module, module.training_loss(batch)).tolist()


CASES = [(kind, share) for kind in (IRMv1, REx) for share in ("shares", "episodes")]


def rank_gradients(rank):
    return [_rank_gradient(kind, share, rank) for kind, share in CASES]


def test_two_processes_give_the_gradient_of_the_global_penalty():
    ranks = torch.tensor(on_processes(rank_gradients), dtype=torch.float64)
    for (kind, share), gradients in zip(CASES, ranks.unbind(1), strict=True):
        module = kind(network(), penalty_weight=7.0, l2=0.01, criterion=BINARY)
        expected = gradient(module, module.training_loss(stacked((8, 8))))
        average = gradients.mean(0)  # what DDP takes
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-14, msg=f"{kind.__name__}, {share}")


# -- in a Trainer -----------------------------------------------------------------------------------------------


def data(**kwargs):
    train = {"small": environment(5, 0), "large": environment(8, 1)}
    return ExampleEnvironments(train, test={"far": environment(7, 2)}, **kwargs)


def trainer(tmp_path, **kwargs):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{**options, "default_root_dir": tmp_path, "enable_model_summary": False, **kwargs})


@pytest.mark.parametrize("eval_batch_size", [None, 3])
def test_validation_reports_each_environment_by_name(tmp_path, eval_batch_size):
    module = IRMv1(network(), penalty_weight=2.0, criterion=BINARY)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module, data(eval_batch_size=eval_batch_size))
    logged = runner.callback_metrics
    module.eval()
    accuracies, losses, penalties = [], [], []
    for x, y in (environment(5, 0), environment(8, 1)):
        z = module.network(x)
        accuracies.append(((z > 0) == (y > 0.5)).float().mean())
        losses.append(BINARY(z, y))
        penalties.append(((z.sigmoid() - y) * z).mean().square())
    expected = {
        "val/accuracy/small": accuracies[0],
        "val/accuracy/large": accuracies[1],
        "val/worst_accuracy": min(accuracies),
        "val/accuracy": sum(accuracies) / 2,
        "val/loss": sum(losses) / 2,
        "val/worst_loss": max(losses),
        "val/penalty": sum(penalties) / 2,
        "val/objective": sum(losses) / 2 + 2 * sum(penalties) / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(logged[name].double(), value.double(), rtol=1e-6, atol=1e-9, msg=name)
    assert not any("far" in name for name in logged)
    assert set(runner.test(module, data(), verbose=False)[0]) >= {"test/accuracy/far", "test/worst_accuracy"}


def test_the_erm_baseline_reports_as_irm_of_weight_0_does(tmp_path):
    results = []
    for module in (ERM(network(), criterion=BINARY), IRMv1(network(), penalty_weight=0.0, criterion=BINARY)):
        results.append(trainer(tmp_path).validate(module, data(eval_batch_size=3), verbose=False)[0])
    assert "val/accuracy/small" in results[0]
    for name, value in results[0].items():
        assert value == pytest.approx(results[1][name], rel=1e-6), name


def test_trainer_steps_equal_a_hand_written_loop(tmp_path):
    start = network()
    module = IRMv1(
        copy.deepcopy(start), penalty_weight=9.0, anneal_steps=3, criterion=BINARY,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )  # fmt: skip
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(module, data(steps_per_epoch=2))
    by_hand = IRMv1(start, criterion=BINARY)
    optimizer = torch.optim.SGD(by_hand.network.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        loss = reference(by_hand, [environment(5, 0), environment(8, 1)], 1.0 if step < 3 else 9.0)
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(module.network.parameters(), by_hand.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_bad_arguments():
    with pytest.raises(ValueError, match="penalty_weight=-1"):
        IRMv1(network(), penalty_weight=-1.0)
    with pytest.raises(ValueError, match="anneal_steps=-2"):
        IRMv1(network(), anneal_steps=-2)
    with pytest.raises(ValueError, match=r"l2=-0\.5"):
        REx(network(), l2=-0.5)
    with pytest.raises(ValueError, match="dealt='rows'"):
        IRMv1(network(), dealt="rows")

    class Own(IRMv1):
        def loss(self, parameters, x, y):
            return self.predict(parameters, x).sum()

    with pytest.raises(ValueError, match="overrides loss"):
        Own(network())


def test_bad_data(tmp_path):
    def fit(module, train):
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, ExampleEnvironments(train))

    x, y = environment(5, 0)
    with pytest.raises(ValueError, match="at least 2"):
        fit(IRMv1(network(), criterion=BINARY), {"only": (x, y)})
    with pytest.raises(ValueError, match="targets 0 and 1, found 2"):
        fit(IRMv1(network(), criterion=BINARY), {"a": (x, y), "b": (x, y * 2)})
    with pytest.raises(ValueError, match=r"\(5, 1\).*\(5,\)"):
        fit(IRMv1(network(), criterion=BINARY), {"a": (x, y[:, 0]), "b": (x, y[:, 0])})
