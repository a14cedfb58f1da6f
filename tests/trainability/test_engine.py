"""A cell is an ordinary training run, with divergence as a result."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.environments import Environments
from lightning_gp.modules import ANIL, BOIL, ERM, FOMAML, LIL, MAML, GradientPenalty, IRMv1
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability import BatchStream, CellTrainer, recording
from tests.cases import COMPILES
from tests.trainability import problems


def batch(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 5, 1, generator=generator, dtype=torch.float64)
    return Environments((x, torch.sin(x)), (x + 0.1, torch.sin(x + 0.1)))


def lil(network, rate, **kwargs):
    return LIL(network, rate, inner_steps=2, divergence="gaussian", criterion=F.mse_loss, **kwargs)


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        (MAML, "sgd"),
        (MAML, "adam"),
        (lambda n, a, **k: MAML(n, a, 2, vectorize=2, **k), "sgd"),
        (FOMAML, "sgd"),
        (ANIL, "sgd"),
        (BOIL, "sgd"),
        (lambda n, a, criterion, **k: lil(n, a, **k), "sgd"),
        (GradientPenalty, "sgd"),
        (IRMv1, "sgd"),
    ],
)
def test_equals_the_trainer_bitwise(build, optimizer, monkeypatch):
    """Also after the operations have been recorded."""
    monkeypatch.setattr(recording, "RECORD_AT", 3)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    steps = 15
    torch.manual_seed(3)
    network = SinusoidMLP(hidden=(6,)).double()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = CellTrainer(build(network, 0.3, criterion=F.mse_loss), BatchStream(problems.data(3)), optimizer)
    outcome = trainer(0.05, 0.002, iterations=steps)

    own = SinusoidMLP(hidden=(6,)).double()
    own.load_state_dict(start)
    module = build(own, 0.05, criterion=F.mse_loss, optimizer=lambda p: kinds[optimizer](p, lr=0.002))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lightning = pl.Trainer(max_steps=steps, limit_val_batches=0, enable_model_summary=False, **quiet)
    lightning.fit(module, problems.data(3))
    for found, expected in zip(trainer.trained, own.parameters(), strict=True):
        assert torch.equal(found, expected)
    after = list(BatchStream(problems.data(3)).first(steps + 1))[-1]
    assert outcome.loss == module.training_loss(after).item()
    assert outcome.iterations == steps


@pytest.mark.parametrize(
    "build",
    [
        lambda n, a: MAML(n, a, criterion=F.mse_loss),
        lambda n, a: FOMAML(n, a, criterion=F.mse_loss),
        lambda n, a: ANIL(n, a, criterion=F.mse_loss),
        lambda n, a: BOIL(n, a, criterion=F.mse_loss),
        lambda n, a: GradientPenalty(n, a, criterion=F.mse_loss),
        lambda n, a: IRMv1(n, a, criterion=F.mse_loss),
        lambda n, a: MAML(n, a, criterion=F.mse_loss, recompute=True),
        lil,
        lambda n, a: lil(n, a, first_order=True),
    ],
)
def test_any_objective_equals_a_plain_loop(build):
    torch.manual_seed(0)
    network = SinusoidMLP(hidden=(4,)).double()
    values = [value.detach().clone() for value in network.parameters()]
    trainer = CellTrainer(build(network, 0.3), BatchStream(batch()))
    outcome = trainer(0.07, 0.01, iterations=4)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), values, strict=True))  # given back

    module = build(network, 0.07)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        module.environment_objectives(module.network_parameters(), batch()).mean().backward()
        optimizer.step()
    expected = module.environment_objectives(module.network_parameters(), batch()).mean().item()
    assert outcome.loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.skipif(not COMPILES, reason="torch 2.5 cannot compile the meta-gradient")
def test_compiled_gradient_equals_autograd_at_several_rates():
    torch.manual_seed(0)
    network = SinusoidMLP(hidden=(4,)).double()
    plain = CellTrainer(MAML(network, criterion=F.mse_loss), BatchStream(batch()))
    compiled = CellTrainer(MAML(network, criterion=F.mse_loss, compile=True), BatchStream(batch()))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for rate in (0.0, 0.01, 0.2):
        assert compiled(rate, 0.02, 5).loss == pytest.approx(plain(rate, 0.02, 5).loss, rel=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= before + 1


def test_divergence_is_a_result():
    trainer = CellTrainer(MAML(nn.Linear(1, 1).double(), criterion=F.mse_loss), BatchStream(batch()), divergence=100.0)
    losses = []
    outcome = trainer(0.01, 5.0, iterations=1000, on_loss=lambda _, loss: losses.append(loss))
    assert outcome.diverged
    assert outcome.worse
    assert outcome.iterations == len(losses) < 100
    assert max(losses) <= 100 * outcome.first_loss
    assert not trainer(0.01, 0.1, iterations=50).diverged


def test_divergence_to_infinity_in_one_step():
    trainer = CellTrainer(MAML(nn.Linear(1, 1).double(), criterion=F.mse_loss), BatchStream(batch()), divergence=1e300)
    assert trainer(0.01, 1e200, iterations=5).loss is None


@pytest.mark.parametrize("module", [ERM(nn.Linear(1, 1)), nn.Linear(1, 1)])
def test_refuses_what_has_no_rate(module):
    with pytest.raises(TypeError, match=r"Linear|ERM"):
        CellTrainer(module, BatchStream(batch()))


def test_refuses_annealing_and_bad_options():
    irm = IRMv1(nn.Linear(1, 1), anneal_steps=3, criterion=F.mse_loss)
    with pytest.raises(ValueError, match="anneal_steps=3"):
        CellTrainer(irm, BatchStream(batch()))
    maml = MAML(nn.Linear(1, 1), criterion=F.mse_loss)
    with pytest.raises(ValueError, match="optimizer='lion'"):
        CellTrainer(maml, BatchStream(batch()), "lion")
    with pytest.raises(ValueError, match="divergence=1"):
        CellTrainer(maml, BatchStream(batch()), divergence=1)


def test_stream_is_the_same_each_time_within_and_beyond_its_memory():
    def values(stream, count):
        return [environments.support[1].clone() for batches in stream.first(count) for environments in batches]

    reference = values(BatchStream(problems.data(0)), 20)
    for budget in (0, 1000, 2**20):
        stream = BatchStream(problems.data(0), budget=budget)
        values(stream, 3)  # a cell that diverged early
        for count in (20, 5):
            found = values(stream, count)
            assert len(found) == count
            assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=False))
    assert not torch.equal(reference[0], reference[7])  # the second epoch brings new episodes
