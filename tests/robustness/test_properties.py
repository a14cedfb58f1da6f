"""Whatever the shapes, steps, parameter subsets and rates: every formulation gives what ``higher`` gives.

Hypothesis draws the problems, always the same ones (``derandomize``), so that a failure can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import higher
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import ERM, MAML
from lightning_gp.environments import Environments, as_batches, count_of
from lightning_gp.functional import adapt
from lightning_gp.functional.meta_gradient import meta_gradient
from tests.cases import flat

repeatable = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PRECISION = {torch.float64: 1e-8, torch.float32: 2e-3}


class Network(nn.Module):
    """A smooth network on inputs of any shape, with a named body and head; batch normalisation if asked for."""

    def __init__(self, feature: tuple[int, ...], hidden: int, outputs: int, normalised: bool) -> None:
        super().__init__()
        size = int(torch.tensor(feature).prod()) if feature else 1
        layers: list[nn.Module] = [nn.Linear(size, hidden)]
        if normalised:
            layers.append(nn.BatchNorm1d(hidden, track_running_stats=False))
        self.body = nn.Sequential(*layers, nn.Tanh(), nn.Linear(hidden, hidden), nn.Softplus())
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(len(x), -1)))


@dataclass
class Case:
    """One drawn problem: a list of batches (more than one where environments are ragged) and how to adapt to it."""

    network: Network
    batches: list[Environments]
    classify: bool
    steps: int
    names: list[str]
    rates: dict[str, float]
    first_order: bool
    dtype: torch.dtype

    @property
    def criterion(self) -> object:
        return F.cross_entropy if self.classify else F.mse_loss

    @property
    def batch(self) -> Environments | list[Environments]:
        return self.batches[0] if len(self.batches) == 1 else self.batches

    def module(self, **options: object) -> MAML:
        return MAML(
            self.network, self.rates, self.steps, self.first_order, adapt=lambda name: name in self.names,
            criterion=self.criterion, **options,
        )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Case:
    feature = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    ways, shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    classify = ways > 1 and draw(st.booleans())
    # With one example the normalisation of its batch is undefined, and torch refuses it.
    normalised = draw(st.booleans()) and ways * min(shots, queries) > 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 2**16)))
        network = Network(feature, draw(st.integers(1, 4)), ways if classify else draw(st.integers(1, 2)), normalised)
    network.to(dtype)

    def examples(count: int, each: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, ways * each, *feature, generator=generator, dtype=dtype)
        if classify:
            return x, torch.arange(ways).repeat(each).expand(count, -1).contiguous()
        outputs = network.head.out_features
        return x, torch.randn(count, ways * each, outputs, generator=generator, dtype=dtype)

    ragged = draw(st.booleans())
    with_query = draw(st.booleans())
    batches = []
    for extra in range(draw(st.integers(2, 3)) if ragged else 1):
        count = draw(st.integers(1, 2 if ragged else 5))
        support = examples(count, shots + extra)
        batches.append(Environments(support, examples(count, queries) if with_query else None))

    every = [name for name, _ in network.named_parameters()]
    subset = draw(st.sampled_from(["all", "head", "body", "predicate"]))
    if subset == "predicate":
        names = [name for name in every if draw(st.booleans())] or every[-1:]
    else:
        names = [name for name in every if subset == "all" or name.startswith(subset)]
    rate = st.floats(0.0, 0.3)
    same = draw(rate)
    per_parameter = draw(st.booleans())
    rates = {name: draw(rate) if per_parameter else same for name in names}
    return Case(network, batches, classify, draw(st.integers(1, 4)), names, rates, draw(st.booleans()), dtype)


def by_higher(case: Case, steps: int) -> tuple[Tensor, Tensor]:
    """Mean query loss and its gradient by the initial parameters, one environment after the other, by ``higher``."""
    network = case.network
    total = sum(count_of(batch) for batch in case.batches)
    loss, gradient = torch.zeros((), dtype=case.dtype), [torch.zeros_like(p) for p in network.parameters()]
    groups = [{"params": [p], "lr": case.rates.get(name, 0.0)} for name, p in network.named_parameters()]
    stop = (lambda gradients: [g.detach() for g in gradients]) if case.first_order else None
    for batch in case.batches:
        (xs, ys), (xq, yq) = batch.support, batch.split("query")
        for e in range(count_of(batch)):
            with higher.innerloop_ctx(network, torch.optim.SGD(groups, lr=0.0)) as (copy, inner):
                for _ in range(steps):
                    inner.step(case.criterion(copy(xs[e]), ys[e]), grad_callback=stop)
                value = case.criterion(copy(xq[e]), yq[e])
                own = torch.autograd.grad(value, list(copy.parameters(time=0)), allow_unused=True)
            loss = loss + value.detach() / total
            gradient = [a if b is None else a + b / total for a, b in zip(gradient, own, strict=True)]
    return loss, flat(gradient)


def trained(module: MAML | ERM, case: Case) -> tuple[Tensor, Tensor]:
    """The training loss and its gradient by the network's parameters."""
    module.zero_grad()
    loss = module.training_loss(case.batch)
    loss.backward()
    return loss.detach(), flat(
        torch.zeros_like(p) if p.grad is None else p.grad for p in module.network.parameters()
    )  # fmt: skip


def assert_close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], form: str, precision: float) -> None:
    for value, reference in zip(one, other, strict=True):
        assert bool(torch.isfinite(value).all()), form
        error = float((value - reference).norm())
        assert error <= precision * (1.0 + float(reference.norm())), f"{form}: {error}"


FORMS = {
    "together": {"vectorize": True},
    "one by one": {"vectorize": False},
    "chunks of two": {"vectorize": 2},
    "auto": {"vectorize": "auto"},
    "recomputed together": {"vectorize": True, "recompute": True},
    "recomputed one by one": {"vectorize": False, "recompute": True},
}


@repeatable
@given(cases())
def test_every_form_is_higher(case):
    reference = by_higher(case, case.steps)
    for form, options in FORMS.items():
        assert_close(trained(case.module(**options), case), reference, form, PRECISION[case.dtype])


@settings(repeatable, max_examples=15)
@given(cases(torch.float32))
def test_every_form_is_higher_in_single_precision(case):
    reference = by_higher(case, case.steps)
    for form, options in FORMS.items():
        loss, gradient = trained(case.module(**options), case)
        assert loss.dtype == gradient.dtype == torch.float32
        assert_close((loss, gradient), reference, form, PRECISION[case.dtype])


@repeatable
@given(cases())
def test_the_written_out_gradient_is_higher(case):
    """Both of its ways to differentiate: recorded, and the traceable one that is compiled."""
    module = case.module()
    total = sum(count_of(batch) for batch in case.batches)
    parameters = dict(case.network.named_parameters())
    reference = by_higher(case, case.steps)
    for traceable in (False, True):
        loss, gradient = torch.zeros((), dtype=case.dtype), torch.zeros_like(reference[1])
        for batch in case.batches:
            result = meta_gradient(
                module.loss, parameters, batch.support, batch.split("query"), case.rates, case.steps,
                weight=1 / total, first_order=case.first_order, adapted=case.names, traceable=traceable,
            )  # fmt: skip
            loss = loss + result.losses.sum() / total
            gradient = gradient + flat(result.parameters[name] for name in parameters)
        assert_close((loss, gradient), reference, f"traceable={traceable}", PRECISION[case.dtype])


@repeatable
@given(cases(), st.sampled_from(["scalar", "parameter", "element"]))
def test_learned_rates_get_the_gradient_of_every_form(case, per):
    """Each form against automatic differentiation through the slow path; of the rates and of the parameters."""
    rates: object = case.rates if per != "scalar" else next(iter(case.rates.values()))
    case.rates = dict.fromkeys(case.names, rates) if per == "scalar" else case.rates
    reference = by_higher(case, case.steps)
    expected = None
    for form, options in {"one by one": FORMS["one by one"], **FORMS}.items():
        module = MAML(
            case.network, rates, case.steps, case.first_order, adapt=lambda name: name in case.names,
            criterion=case.criterion, learn_inner_lr=True, inner_lr_per=per, **options,
        )  # fmt: skip
        loss, gradient = trained(module, case)
        assert_close((loss, gradient), reference, form, PRECISION[case.dtype])
        of_rates = flat(parameter.grad for parameter in module.inner_rates.parameters())
        expected = of_rates if expected is None else expected
        assert_close((loss, of_rates), (loss, expected), form, PRECISION[case.dtype])


@repeatable
@given(cases())
def test_no_inner_step_is_joint_training(case):
    """S = 0 is the business of ERM; MAML and ``adapt`` refuse it, and a rate of 0 gives the same."""
    reference = by_higher(case, 0)
    for vectorize in (True, False, 2):
        module = ERM(case.network, criterion=case.criterion, vectorize=vectorize)
        assert_close(trained(module, case), reference, f"ERM, {vectorize}", PRECISION[case.dtype])
    for name in case.rates:
        case.rates[name] = 0.0
    assert_close(trained(case.module(vectorize=True), case), reference, "rate 0", PRECISION[case.dtype])
    with pytest.raises(ValueError, match="use ERM"):
        MAML(case.network, inner_steps=0)
    with pytest.raises(ValueError, match="use ERM"):
        adapt(case.module().loss, dict(case.network.named_parameters()), case.batches[0].support, 0.1, steps=0)


@repeatable
@given(cases(), st.sampled_from(["environments", "support", "query"]))
def test_empty_is_refused(case, empty):
    """Neither no environment, nor one without examples."""
    batch = case.batches[0]
    (xs, ys), (xq, yq) = batch.support, batch.split("query")
    if empty == "environments":
        bad = Environments((xs[:0], ys[:0]), (xq[:0], yq[:0]))
    elif empty == "support":
        bad = Environments((xs[:, :0], ys[:, :0]), (xq, yq))
    else:
        bad = Environments((xs, ys), (xq[:, :0], yq[:, :0]))
    for wrong in (bad, [batch, bad]):
        with pytest.raises(ValueError, match=r"set is empty: x has shape .*; every environment needs examples"):
            case.module().training_loss(wrong)
    with pytest.raises((TypeError, ValueError), match="Expected a batch of type Environments"):
        as_batches([])


@repeatable
@given(cases())
def test_the_order_of_environments_does_not_matter(case):
    """Reversed, and cut into single environments."""
    module = case.module(vectorize=True)
    forward = trained(module, case)
    whole = case.batches

    def flipped(batch: Environments) -> Environments:
        return Environments(*(None if pair is None else (pair[0].flip(0), pair[1].flip(0)) for pair in batch))

    case.batches = [flipped(batch) for batch in reversed(whole)]
    assert_close(trained(module, case), forward, "reversed", PRECISION[case.dtype])
    case.batches = [
        Environments(*(None if pair is None else (pair[0][e : e + 1], pair[1][e : e + 1]) for pair in batch))
        for batch in whole
        for e in range(count_of(batch))
    ]
    assert_close(trained(module, case), forward, "single", PRECISION[case.dtype])
