"""What modules, data and measurements promise each other: each row was a wrong number in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lightning_gp.modules as modules
from lightning_gp import ANIL, ERM, FOMAML, LIL, MAML, Environments, GradientPenalty, IRMv1, REx
from lightning_gp._lightning import pl
from lightning_gp.callbacks import GradientNorm
from lightning_gp.contracts import Adapts, Objective, Varies
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.modules import NamedEnvironmentModule
from lightning_gp.modules.checks import handled_by
from lightning_gp.networks import SinusoidMLP
from lightning_gp.trainability.objective import rate_of, value_and_gradients
from tests.cases import COMPILES, flat, regression
from tests.module_cases import MODULES, build

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(module, batches, **options):
    trainer = pl.Trainer(accelerator="cpu", **{"max_epochs": 1, **QUIET, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None) if isinstance(batches, list) else batches)
    return trainer


def pair(seed, shape=(2, 5, 1)):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    return x, 3 * x + 0.1 * torch.rand(shape, generator=generator)


def test_every_algorithm_has_a_row_on_which_all_of_these_run():
    public = {getattr(modules, name) for name in modules.__all__}
    bases = {base for kind in public for base in kind.__mro__[1:]}
    assert public - bases <= {case.module for case in MODULES.values()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_fulfils_its_contracts(name):
    module = build(name)
    assert isinstance(module, Objective)
    assert isinstance(module, Adapts) == isinstance(module, MAML)
    assert isinstance(module, Varies) == (not isinstance(module, ERM))


# -- 1: shapes are checked where the loss is computed, in every call --------------------------------------------


def good():
    return Environments(pair(0), pair(1))


def flat_query():
    (x, y), (xq, yq) = good()
    return Environments((x, y), (xq, yq[..., 0]))


def flat_support():
    (x, y), query = good()
    return Environments((x, y[..., 0]), query)


LATE = {
    "query": [flat_query()],
    "support": [flat_support()],
    "a later batch": [good(), flat_query()],
    "a later item of a list": [[good(), flat_support()]],
}
CRITERIA = {
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "module": nn.SmoothL1Loss(),
    "lambda": lambda z, y: (z - y).abs().mean(),
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("batches", LATE)
@pytest.mark.parametrize("kind", [MAML, FOMAML, LIL])
def test_targets_that_would_broadcast_are_refused_wherever_they_come(kind, batches, criterion):
    options = {"divergence": "gaussian"} if kind is LIL else {}
    with pytest.raises(ValueError, match=r"output has shape \(5, 1\) but the targets have \(5,\)"):
        fit(kind(SinusoidMLP([4]), criterion=CRITERIA[criterion], **options), LATE[batches])


@pytest.mark.parametrize("kind", [ERM, IRMv1, REx, GradientPenalty])
def test_and_without_an_inner_loop(kind):
    with pytest.raises(ValueError, match=r"output has shape \(5, 1\) but the targets have \(5,\)"):
        fit(kind(SinusoidMLP([4]), criterion=CRITERIA["lambda"]), [good(), flat_query()])


# -- 2: the examples that train are those that are measured -----------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda n: ERM(n, criterion=F.mse_loss),
        lambda n: IRMv1(n, penalty_weight=0.0, criterion=F.mse_loss),
        lambda n: REx(n, penalty_weight=0.0, criterion=F.mse_loss),
        lambda n: GradientPenalty(n, coefficient=0.0, criterion=F.mse_loss),
        lambda n: MAML(n, inner_lr=0.0, criterion=F.mse_loss),
    ],
)
def test_without_a_penalty_all_train_and_measure_the_query_set(build):
    torch.manual_seed(0)
    module, reference = build(SinusoidMLP([4])), None
    reference = ERM(module.network, criterion=F.mse_loss)
    loss = reference.environment_losses(reference.network_parameters(), good()).mean()
    expected = torch.autograd.grad(loss, list(module.network.parameters()))
    found = torch.autograd.grad(module.training_loss(good()), list(module.network.parameters()))
    torch.testing.assert_close(flat(found), flat(expected))
    norm = GradientNorm()
    each = module.environment_losses(module.network_parameters(), good())
    norms = [
        flat(torch.autograd.grad(one, list(module.network.parameters()), retain_graph=True)).norm() for one in each
    ]
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    fit(module, [good()], callbacks=[norm])
    assert norm.values["gradients/norm"] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-5)


# -- 3: shares of every environment are handled by who sums over processes, and by nobody who inherits it --------


class Inherits(NamedEnvironmentModule):
    pass


class OwnObjective(IRMv1):
    def environment_objectives(self, parameters, environments):
        return self.environment_losses(parameters, environments)


class OwnPenalty(IRMv1):
    def penalties(self, logits, targets):
        return logits.flatten(1).square().mean(1)


class OwnSum(OwnPenalty):
    handles = ("episodes", "shares")


HANDLED = {
    Inherits: {"episodes"},
    OwnObjective: {"episodes"},
    OwnPenalty: {"episodes"},
    OwnSum: {"episodes", "shares"},
    ERM: {"episodes", "shares"},
    IRMv1: {"episodes", "shares"},
    REx: {"episodes", "shares"},
    GradientPenalty: {"episodes", "shares"},
    MAML: {"episodes"},
}


@pytest.mark.parametrize("kind", HANDLED)
def test_what_a_module_handles(kind):
    assert set(handled_by(kind(SinusoidMLP([4]), criterion=F.mse_loss))) == HANDLED[kind]


# -- 4: an inner loop that is overridden changes both ways to differentiate it, or is refused --------------------


class Slower(MAML):
    """Another value of the inner loop."""

    def inner_loop(self):
        from dataclasses import replace

        return replace(super().inner_loop(), steps=3, rates=0.05)


class OwnAdaptation(MAML):
    def adaptation(self, loss, parameters, environments, **options):
        return super().adaptation(loss, parameters, environments, **{"steps": 2, **options})


COMPILED = [pytest.mark.slow, pytest.mark.skipif(not COMPILES, reason="torch 2.5 cannot compile the step, and says so")]


@pytest.mark.parametrize("form", [{}, {"recompute": True}, pytest.param({"compile": True}, marks=COMPILED)], ids=str)
def test_an_overridden_inner_loop_changes_every_form(form):
    problem = regression(smooth=True)
    slower = Slower(problem.fresh(), criterion=problem.criterion, **form)
    same = MAML(problem.fresh(), 0.05, 3, criterion=problem.criterion)
    for module in (slower, same):
        module.training_loss(problem.environments).backward()
    torch.testing.assert_close(*(flat(p.grad for p in module.parameters()) for module in (slower, same)))


def test_compiled_maps_take_the_overridden_inner_loop_too():
    problem = regression(smooth=True)
    module = Slower(problem.fresh(), criterion=problem.criterion)
    loss, _ = value_and_gradients(module, rate_of(module))([problem.environments])
    torch.testing.assert_close(loss, module.training_loss(problem.environments).detach())


@pytest.mark.parametrize("form", ["recompute", "compile"])
def test_an_overridden_adaptation_is_refused_where_it_would_be_ignored(form):
    with pytest.raises(ValueError, match=r"OwnAdaptation overrides adaptation.*override inner_loop\(\)"):
        OwnAdaptation(SinusoidMLP([4]), criterion=F.mse_loss, **{form: True})


# -- 5: a random loss is seen in the trial run ------------------------------------------------------------------


class Random(nn.Module):
    """Randomness that is no dropout layer."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, x):
        z = self.a(x)
        if self.kind == "functional dropout":
            z = F.dropout(z, 0.5, self.training)
        elif self.kind == "drop path":
            z = z * (torch.rand(len(z), 1) < 0.7) / 0.7
        elif self.kind == "noise":
            z = z + 0.1 * torch.randn_like(z)
        else:
            z = nn.functional.rrelu(z, training=True)
        return self.b(z)


@pytest.mark.parametrize("kind", ["functional dropout", "drop path", "noise", "rrelu"])
def test_randomness_is_refused_under_recompute_and_nowhere_else(kind):
    fit(MAML(Random(kind), criterion=F.mse_loss, vectorize=kind != "rrelu"), [good()])
    with pytest.raises(ValueError, match=r"draws random numbers.*recompute=True"):
        fit(MAML(Random(kind), criterion=F.mse_loss, recompute=True), [good()])
    with pytest.raises(ValueError, match="draws random numbers"):
        MAML(Random(kind), criterion=F.mse_loss, recompute=True).training_loss(good())


# -- 7: a position means an environment only where the data module says so ---------------------------------------


@pytest.mark.parametrize("kind", [ERM, IRMv1, REx, GradientPenalty])
def test_names_come_from_the_data_module(kind):
    x, y = pair(0, (8, 1))
    data = ExampleEnvironments({"here": (x, y), "there": (x, 2 * y)}, val={"here": (x, y), "there": (x, 2 * y)})
    named = fit(kind(nn.Linear(1, 1), criterion=F.mse_loss), data).callback_metrics
    assert {"val/loss/here", "val/loss/there", "val/worst_loss"} <= set(named)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, **QUIET)
    loader = DataLoader([good(), good()], batch_size=None)
    trainer.fit(kind(nn.Linear(1, 1), criterion=F.mse_loss), loader, loader)
    assert "val/loss" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if "worst" in key or key.startswith("val/loss/")]


# -- 11: what is misspelt is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", [["head", "bdoy"], ["head.wieght"], ["body.9"]])
def test_a_prefix_that_begins_no_name_is_refused(adapt):
    with pytest.raises(ValueError, match="begin no parameter's name"):
        ANIL(SinusoidMLP(), adapt=adapt)


def test_whole_numbers_to_regress_on_have_no_accuracy():
    x = torch.rand(2, 5, 1)
    y = torch.randint(5, (2, 5, 1))
    module = ERM(SinusoidMLP([4]), criterion=lambda z, y: F.mse_loss(z, y.float()))
    assert "accuracy" not in module.evaluate(Environments((x, y)))
