"""Modules and batches that know nothing of the callbacks: training stays bitwise what it is, numbers are right.

A new shape is one class, named in ``STATES``, ``REACHES`` or ``REFUSED``.
"""

import copy
import functools
import io
import itertools
import random
from collections import Counter, UserDict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import Accuracy, MeanMetric, MetricCollection

from lightning_gp.callbacks import CosineSimilarity, GradientNorm, HessianEigenvalues, PhaseAmplitudeConsistency
from lightning_gp.functional.gradients import cosine_similarity, gradient_norm
from tests.callbacks.callback_cases import assert_same_training, build, fit

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 6, generator=GENERATOR), torch.randint(0, 5, (32,), generator=GENERATOR)
WINDOW = deque([0.0], maxlen=3)


def loaders(batch_size=8):
    return DataLoader(TensorDataset(X, Y), batch_size), DataLoader(TensorDataset(X, Y), batch_size)


class Stranger(pl.LightningModule):
    """``change`` is what the step does besides: it may move a state, and gives what is added to the loss or None."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5))
        self.make()

    def make(self):
        pass

    def change(self, x, y, z):
        return 0.0

    def loss(self, x, y):
        z = self.net(x)
        return F.cross_entropy(z, y) + self.change(x, y, z)

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


# -- states that a step moves ---------------------------------------------------------------------------------------


class MomentumEncoder(Stranger):
    def make(self):
        self.key = copy.deepcopy(self.net).requires_grad_(False)

    def change(self, x, y, z):
        with torch.no_grad():
            for k, q in zip(self.key.parameters(), self.net.parameters(), strict=True):
                k.lerp_(q, 0.1)
        return 0.1 * F.mse_loss(z, self.key(x))


class RepointedEncoder(MomentumEncoder):
    def change(self, x, y, z):
        for k, q in zip(self.key.parameters(), self.net.parameters(), strict=True):
            k.data = k.data * 0.9 + q.data * 0.1
        return 0.1 * F.mse_loss(z, self.key(x))


class Prototypes(Stranger):
    def loss(self, x, y):
        with torch.no_grad():
            self.net[2].weight.copy_(F.normalize(self.net[2].weight, dim=1))
        return super().loss(x, y)


class Clipped(Stranger):
    def loss(self, x, y):
        for parameter in self.net.parameters():
            parameter.data.clamp_(-0.2, 0.2)
        return super().loss(x, y)


class NoisyWeights(Stranger):
    def loss(self, x, y):
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        return super().loss(x, y)


class OwnGenerators(Stranger):
    def make(self):
        self.generators = {
            "torch": torch.Generator().manual_seed(1), "numpy": [np.random.default_rng(1), np.random.RandomState(1)],
            "python": random.Random(1),
        }  # fmt: skip

    def change(self, x, y, z):
        numpy = sum(each.normal() for each in self.generators["numpy"])
        noise = torch.randn(z.shape, generator=self.generators["torch"]) + numpy + self.generators["python"].random()
        return 0.1 * (noise * z).mean()


class Bank:
    def __init__(self):
        self.rows, self.at, self.array = torch.zeros(16, 5), 0, np.zeros(5, dtype=np.float32)

    def push(self, rows):
        self.rows[self.at : self.at + len(rows)] = rows
        self.at = (self.at + len(rows)) % 16
        self.array += rows.mean(0).numpy()


class MemoryBank(Stranger):
    def make(self):
        self.bank = Bank()

    def change(self, x, y, z):
        self.bank.push(z.detach())
        return 0.1 * (z.mean(0) * (self.bank.rows.mean(0) + torch.from_numpy(self.bank.array))).sum()


@dataclass
class Seen:
    steps: int = 0
    losses: list = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)
    last: deque = field(default_factory=lambda: deque(maxlen=2))


class Slotted:
    __slots__ = ("steps",)

    def __init__(self):
        self.steps = 0


class Dataclass(Stranger):
    def make(self):
        self.seen, self.slotted = {"train": [Seen()]}, Slotted()

    def change(self, x, y, z):
        seen = self.seen["train"][0]
        seen.steps += 1
        self.slotted.steps += 1
        seen.losses.append(float(z.detach().mean()))
        seen.kinds["steps"] += 1
        seen.last.append(seen.steps)
        return 0.01 * (seen.steps + sum(seen.last) + seen.kinds["steps"] + self.slotted.steps) * z.mean()


class Shadow:
    def __init__(self, net):
        self.net = copy.deepcopy(net)

    @torch.no_grad()
    def update(self, net):
        for mine, other in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.lerp_(other, 0.1)


class EMAHelper(Stranger):
    def make(self):
        self.shadows = (Shadow(self.net),)

    def change(self, x, y, z):
        self.shadows[0].update(self.net)
        return 0.1 * F.mse_loss(z, self.shadows[0].net(x).detach())


class NestedMetrics(Stranger):
    def make(self):
        self.metrics = {"train": {"both": [MeanMetric(), Accuracy("multiclass", num_classes=5)]}}
        self.collection = MetricCollection([Accuracy("multiclass", num_classes=5)])

    def change(self, x, y, z):
        mean, accuracy = self.metrics["train"]["both"]
        mean.update(z.detach().mean())
        accuracy(z, y)
        self.collection.update(z, y)
        self.log("mean", mean.compute())
        self.log_dict(self.collection.compute())
        return 0.1 * mean.compute() * accuracy.compute() * z.mean()


class Closure(Stranger):
    def make(self):
        steps = 0

        def count():
            nonlocal steps
            steps += 1
            return steps

        self.count = functools.partial(lambda function: function(), count)

    def change(self, x, y, z):
        return 0.1 * self.count() * z.mean()


class Iterators(Stranger):
    def make(self):
        self.numbers, self.weights = itertools.count(), [itertools.cycle([0.1, 0.2, 0.3]), iter(range(100))]

    def change(self, x, y, z):
        return (next(self.numbers) * 0.01 + next(self.weights[0]) + 0.01 * next(self.weights[1])) * z.mean()


class OnTheClass(Stranger):
    steps = 0

    def make(self):
        type(self).steps = 0
        WINDOW.clear()

    def change(self, x, y, z):
        type(self).steps += 1
        WINDOW.append(0.1 * self.steps)
        return 0.1 * sum(WINDOW) * z.mean()


class Undetached(Stranger):
    def make(self):
        self.running = SimpleNamespace(mean=torch.zeros(5))

    def change(self, x, y, z):
        self.running.mean = 0.9 * self.running.mean.detach() + z.mean(0)
        return 0.1 * self.running.mean.square().sum()


class Schedulers(Stranger):
    def change(self, x, y, z):
        self.lr_schedulers().step()
        for group in self.optimizers().param_groups:
            group["momentum"] *= 0.99
        return 0.0

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch", "frequency": 1000}]


class OnTheTrainer(Stranger):
    def change(self, x, y, z):
        self.trainer.seen = getattr(self.trainer, "seen", 0) + 1
        self.trainer.callback_metrics["seen"] = torch.tensor(float(self.trainer.seen))
        return 0.01 * self.trainer.seen * z.mean()


class BackwardInside(Stranger):
    def loss(self, x, y):
        noise = torch.zeros_like(x, requires_grad=True)
        F.cross_entropy(self.net(x + noise), y).backward()
        self.zero_grad()
        return super().loss(x + 0.1 * noise.grad.sign(), y)


class Hooks(Stranger):
    def make(self):
        self.kept = []
        self.net[2].register_full_backward_hook(lambda module, inputs, outputs: self.kept.append(1))
        self.net[2].weight.register_hook(lambda gradient: gradient * (1 + len(self.kept)))

    def change(self, x, y, z):
        self.net[1].register_forward_hook(lambda module, inputs, output: output * 1.01)
        return 0.0


class Freezing(Stranger):
    def loss(self, x, y):
        self.net[0].requires_grad_(self.global_step < 2)
        return super().loss(x, y)


class ReadsGradients(Stranger):
    """Not refused: the gradient that the step has read is put back too."""

    def loss(self, x, y):
        lengths = [parameter.grad.norm() for parameter in self.net.parameters() if parameter.grad is not None]
        return super().loss(x, y) * (1 + float(sum(lengths)))


class Saturating(Stranger):
    """Not refused: its bank is full after two batches, and the next runs are all alike."""

    def make(self):
        self.bank, self.at = torch.zeros(16, 5), 0

    def change(self, x, y, z):
        self.bank[self.at : self.at + len(z)] = z.detach()
        self.at = (self.at + len(z)) % 16
        return (self.bank.mean(0) * z.mean(0)).sum()


class Swapping(Stranger):
    """Not refused: its layers are others after the step."""

    def change(self, x, y, z):
        self.net[1] = nn.ReLU()
        return 0.0


STATES = (
    MomentumEncoder, RepointedEncoder, Prototypes, Clipped, NoisyWeights, OwnGenerators, MemoryBank, Dataclass,
    EMAHelper, NestedMetrics, Closure, Iterators, OnTheClass, Undetached, Schedulers, OnTheTrainer, BackwardInside,
    Hooks, Freezing, ReadsGradients, Saturating, Swapping,
)  # fmt: skip


# -- ways to reach parameters ---------------------------------------------------------------------------------------


class ListOfParameters(Stranger):
    def make(self):
        self.every = list(self.parameters())

    def change(self, x, y, z):
        return sum(parameter.square().sum() for parameter in self.every)


class OptimizerGroups(Stranger):
    def change(self, x, y, z):
        return sum(p.square().sum() for group in self.optimizers().param_groups for p in group["params"])


class HeadInTheLoss(Stranger):
    def make(self):
        weight = self.net[2].weight
        self.arc = lambda h, y: F.cross_entropy(8 * F.normalize(h, dim=1) @ F.normalize(weight, dim=1).T, y)

    def loss(self, x, y):
        return self.arc(self.net[1](self.net[0](x)), y)


class IsParameter(Stranger):
    def change(self, x, y, z):
        return sum(
            value.square().sum() for value in vars(self.net[0])["_parameters"].values() if type(value) is nn.Parameter
        )


class Tied(Stranger):
    def make(self):
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 5))
        self.net[2].weight = self.net[0].weight


class Unlisted(Stranger):
    def make(self):
        self.scale = [nn.Parameter(torch.ones(5))]

    def loss(self, x, y):
        return F.cross_entropy(self.net(x) * self.scale[0], y)

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), *self.scale], lr=0.1)


class Checkpointed(Stranger):
    def loss(self, x, y):
        return F.cross_entropy(checkpoint(self.net, x, use_reentrant=False), y)


class Sparse(Stranger):
    def make(self):
        self.embedding = nn.Embedding(10, 6, sparse=True)

    def loss(self, x, y):
        return super().loss(x + self.embedding((x[:, 0].abs() * 3).long().clamp(max=9)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Complex(Stranger):
    def make(self):
        self.weight = nn.Parameter(0.3 * torch.randn(6, 6, dtype=torch.complex64))

    def loss(self, x, y):
        return super().loss((x.to(torch.complex64) @ self.weight).abs(), y)


REACHES = (
    Stranger, ListOfParameters, OptimizerGroups, HeadInTheLoss, IsParameter, Tied, Unlisted, Checkpointed, Sparse,
    Complex,
)  # fmt: skip


def every(**options):
    return [
        GradientNorm(at="probe", **options),
        GradientNorm(prefix="step/", **options),
        CosineSimilarity(**options),
        PhaseAmplitudeConsistency(**options),
    ]


def same_with_and_without(tmp_path, cls, callbacks, data=loaders, **options):
    without, attached = build(cls), None
    before = fit(tmp_path, without, data(), **options)
    attached = build(cls)  # after the first fit: class attributes and variables begin anew
    after = fit(tmp_path, attached, data(), callbacks, **options)
    assert_same_training(without, attached)
    for key, value in before.callback_metrics.items():
        assert torch.equal(value, after.callback_metrics[key]), key
    return attached, after


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("cls", [*STATES, *REACHES], ids=lambda cls: cls.__name__)
def test_training_is_bitwise_the_same(tmp_path, cls):
    callbacks = [*every(every_n_steps=3), *([] if cls in (Sparse, Complex) else [HessianEigenvalues(k=1)])]
    same_with_and_without(tmp_path, cls, callbacks)
    assert all(np.isfinite(value) for callback in callbacks for value in callback.values.values())
    assert callbacks[0].values


def gradients_of(module, batch, index=0):
    """By plain autograd, at the module's weights, of everything that its optimizer changes."""
    parameters = [p for group in module.optimizers().param_groups for p in group["params"]]
    found = torch.autograd.grad(module.training_step(batch, index), parameters, materialize_grads=True)
    return {str(i): (g.to_dense() if g.is_sparse else g).unsqueeze(0) for i, g in enumerate(found)}


@pytest.mark.parametrize("cls", REACHES, ids=lambda cls: cls.__name__)
def test_numbers_are_those_of_plain_autograd(tmp_path, cls):
    callbacks = [GradientNorm(at="probe"), CosineSimilarity()]

    def data():
        return DataLoader(TensorDataset(X[:8], Y[:8]), 8), DataLoader(TensorDataset(X[8:], Y[8:]), 24)

    module = build(cls)
    fit(tmp_path, module, data(), callbacks)
    training, validation = gradients_of(module, (X[:8], Y[:8])), gradients_of(module, (X[8:], Y[8:]))
    flat = torch.cat([gradient.flatten().to(torch.complex128) for gradient in training.values()])
    other = torch.cat([gradient.flatten().to(torch.complex128) for gradient in validation.values()])
    assert callbacks[0].values["gradients/norm"] == pytest.approx(float(flat.abs().square().sum().sqrt()), rel=1e-5)
    cosine = float((flat.conj() * other).sum().real / flat.norm() / other.norm())
    assert callbacks[1].values["gradients/cosine"] == pytest.approx(cosine, abs=1e-5)
    assert gradient_norm(training).item() == pytest.approx(float(flat.norm()), rel=1e-5)
    assert cosine_similarity(training, validation).item() == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("cls", [ListOfParameters, OptimizerGroups, HeadInTheLoss, Tied, Checkpointed], ids=str)
def test_eigenvalues_are_those_of_plain_autograd(tmp_path, cls):
    module, callback = build(cls), HessianEigenvalues(k=1, tol=1e-6)
    fit(tmp_path, module, DataLoader(TensorDataset(X, Y), 32), [callback])
    parameters = list(module.parameters())
    first = torch.autograd.grad(module.training_step((X, Y), 0), parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([gradient.flatten() for gradient in first])
    rows = [
        torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True)
        if each.requires_grad
        else [torch.zeros_like(p) for p in parameters]
        for each in flat
    ]
    hessian = torch.stack([torch.cat([entry.flatten() for entry in row]) for row in rows]).double()
    top = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2).max())
    assert callback.values["curvature/eigenvalue_1"] == pytest.approx(top, rel=1e-4)


# -- refusals -------------------------------------------------------------------------------------------------------


class Reentrant(Stranger):
    def loss(self, x, y):
        return F.cross_entropy(checkpoint(self.net, x.clone().requires_grad_(), use_reentrant=True), y)


class OpenFile(Stranger):
    def make(self):
        self.notes = SimpleNamespace(file=io.StringIO())

    def change(self, x, y, z):
        self.notes.file.write("step\n")
        return 0.0


class OwnLoader(Stranger):
    def make(self):
        self.unlabelled = iter(DataLoader(X, 4))

    def change(self, x, y, z):
        return 0.1 * self.net(next(self.unlabelled)).square().mean()


class Generator(Stranger):
    def make(self):
        self.numbers = (i for i in range(1000))

    def change(self, x, y, z):
        return 0.01 * next(self.numbers) * z.mean()


class OnceOnly(torch.autograd.Function):
    """Fills ``.grad`` by a backward pass of its own, as reversible networks do: autograd knows of no dependence."""

    @staticmethod
    def forward(ctx, x, net):
        ctx.save_for_backward(x)
        ctx.net = net
        return net(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            ctx.net(ctx.saved_tensors[0].detach()).backward(gradient)
        return torch.zeros_like(ctx.saved_tensors[0]), None


class OwnBackward(Stranger):
    def make(self):
        self.first = nn.Linear(6, 6)

    def loss(self, x, y):
        return F.cross_entropy(self.net[2](OnceOnly.apply(x.clone().requires_grad_(), self.first)), y)


class FetchesItself(Stranger):
    def training_step(self, dataloader_iter):
        return self.loss(*next(dataloader_iter)[0])


REFUSED = {
    Reentrant: "use_reentrant=False",
    OpenFile: r"changes module\.notes\.file, which cannot be put back",
    OwnLoader: r"changes module\.unlabelled\..*which cannot be put back",
    Generator: r"changes module\.numbers.*which cannot be put back",
    OwnBackward: r"another gradient than training has in \.grad, of first\.weight, first\.bias",
    FetchesItself: "fetches its own data",
}


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_refused_before_the_first_step(tmp_path, cls):
    module = build(cls)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=REFUSED[cls]):
        fit(tmp_path, module, loaders(), [GradientNorm(at="probe")])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# -- batches and steps ----------------------------------------------------------------------------------------------


class Graph:
    """A batch of graphs has more nodes than graphs."""

    def __init__(self, x, y):
        self.x, self.y, self.num_graphs = x, y, len(y) // 2

    def to(self, device):
        return Graph(self.x.to(device), self.y.to(device))


@dataclass
class Data:
    x: torch.Tensor
    y: torch.Tensor


class Encoding(UserDict):
    x = property(lambda self: self["x"], lambda self, value: self.__setitem__("x", value))
    y = property(lambda self: self["y"])

    def to(self, device):
        return self


Pair = namedtuple("Pair", "x y")
BATCHES = {
    "object": Graph,
    "dataclass": Data,
    "mapping": lambda x, y: Encoding({"x": x, "y": y}),
    "namedtuple": Pair,
    "history": lambda x, y: SimpleNamespace(x=x.requires_grad_() * 1, y=y, to=None),
}


class Batches(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 4

    def __getitem__(self, i):
        part = slice(8 * i, 8 * i + 8)
        return self.make(X[part].clone(), Y[part].clone())


class InPlace(Stranger):
    """Changes its batch, as graph code does; its weights stand still."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            batch.x.mul_(0.5)
        return (1 + batch_idx) * F.cross_entropy(self.net(batch.x), batch.y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_any_type(tmp_path, kind):
    module, callback = build(InPlace), GradientNorm(at="probe", every_n_steps=1)
    seen = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(callback.values["gradients/norm"])
    fit(tmp_path, module, DataLoader(Batches(BATCHES[kind]), batch_size=None), [callback])
    loss = F.cross_entropy(module.net(0.5 * X[:8]), Y[:8])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]).norm().item()
    assert seen == [pytest.approx(expected, rel=1e-5)] * 8


@pytest.mark.parametrize(("kind", "size"), [("dataclass", 5), ("mapping", 13), ("namedtuple", 9), ("object", 8)])
def test_the_probe_holds_so_many_examples(tmp_path, kind, size):
    module, callback = build(InPlace), GradientNorm(at="probe", probe_size=size)
    fit(tmp_path, module, DataLoader(Batches(BATCHES[kind]), batch_size=None), [callback])
    lengths = [len(batch.x) // (2 if kind == "object" else 1) for batch in callback.batch.batches]
    assert sum(lengths) == size
    assert callback.batch.indices == list(range(len(lengths)))
    # Each batch is run with the index that it had.
    parts = [
        (1 + i) * len(b.x) * F.cross_entropy(module.net(0.5 * b.x), b.y) for i, b in enumerate(callback.batch.batches)
    ]
    loss = sum(parts) / sum(len(b.x) for b in callback.batch.batches)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]).norm().item()
    assert callback.values["gradients/norm"] == pytest.approx(expected, rel=1e-5)


def test_a_size_that_would_cut_an_object_is_refused(tmp_path):
    data = DataLoader(Batches(Graph), batch_size=None)
    with pytest.raises(ValueError, match=r"probe_size wants the first 3 of 4 .* type Graph cannot be cut"):
        fit(tmp_path, build(InPlace), data, [GradientNorm(at="probe", probe_size=3)])


def decorated(step):
    @functools.wraps(step)
    def inner(*args, **kwargs):
        return step(*args, **kwargs)

    return inner


class Arguments(Stranger):
    def training_step(self, *args):
        (x, y), batch_idx = args
        return (1 + batch_idx) * self.loss(x, y)


class BatchAlone(Stranger):
    def training_step(self, batch):
        return self.loss(*batch)


class KeywordOnly(Stranger):
    def training_step(self, batch, *, batch_idx=3):
        return (1 + batch_idx) * self.loss(*batch)


class Decorated(Stranger):
    @decorated
    def training_step(self, batch, batch_idx):
        return {"loss": (1 + batch_idx) * self.loss(*batch), "more": 1}


class Skipping(Stranger):
    def training_step(self, batch, batch_idx):
        return None if batch_idx in (0, 2) else self.loss(*batch)


@pytest.mark.parametrize("cls", [Arguments, BatchAlone, KeywordOnly, Decorated, Skipping], ids=lambda cls: cls.__name__)
def test_steps_of_any_signature(tmp_path, cls):
    callback = GradientNorm(at="probe", probe_size=16)
    module, _ = same_with_and_without(tmp_path, cls, [callback, HessianEigenvalues(k=1, probe_size=16)])
    indices = [1, 3] if cls is Skipping else [0, 1]
    assert callback.batch.indices == indices
    losses = []
    for i in indices:
        batch = X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]
        loss = module.training_step(batch) if cls in (BatchAlone, KeywordOnly) else module.training_step(batch, i)
        losses.append(loss["loss"] if isinstance(loss, dict) else loss)
    gradients = torch.autograd.grad(sum(losses) / 2, list(module.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert callback.values["gradients/norm"] == pytest.approx(expected, rel=1e-5)


# -- optimizers -----------------------------------------------------------------------------------------------------


class ClosureSteps(Stranger):
    """Notes the norm at the first evaluation of each step."""

    def make(self):
        self.norms, self.fresh = [], True

    def note(self):
        if self.fresh:
            self.norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())
        self.fresh = False


class LBFGS(ClosureSteps):
    def on_train_batch_start(self, batch, batch_idx):
        self.fresh = True

    def on_before_optimizer_step(self, optimizer):
        self.note()

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.3, max_iter=5)


class Raw(ClosureSteps):
    """Manual optimization with torch's optimizer itself."""

    def make(self):
        super().make()
        self.automatic_optimization = False

    def gradient(self, batch):
        self.zero_grad()
        loss = self.loss(*batch)
        self.manual_backward(loss)
        self.note()
        return loss

    def training_step(self, batch, batch_idx):
        self.fresh = True
        self.gradient(batch)
        self.optimizers().optimizer.step()


class RawByAnotherWay(Raw):
    def training_step(self, batch, batch_idx):
        self.fresh = True
        self.gradient(batch)
        self.optimizers(use_pl_optimizer=False).step()


class RawClosure(Raw):
    def training_step(self, batch, batch_idx):
        self.fresh = True
        self.optimizers(use_pl_optimizer=False).step(lambda: self.gradient(batch))

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.3, max_iter=5)


class Manual(Raw):
    def training_step(self, batch, batch_idx):
        self.fresh = True
        self.gradient(batch)
        self.optimizers().step()


@pytest.mark.parametrize("cls", [LBFGS, Raw, RawByAnotherWay, RawClosure, Manual], ids=lambda cls: cls.__name__)
def test_one_value_per_optimizer_step(tmp_path, cls):
    callbacks = [GradientNorm(), PhaseAmplitudeConsistency(), GradientNorm(every_n_steps=3, prefix="often/")]
    module, _ = same_with_and_without(tmp_path, cls, callbacks, max_epochs=1)
    norms = module.norms
    assert len(norms) == 4
    assert callbacks[0].values["gradients/norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    amplitude = np.mean(norms[1:]) / norms[0]
    assert callbacks[1].values["linearity/loss_gradient_ratio"] == pytest.approx(amplitude, rel=1e-5)
    assert callbacks[2].values["often/gradients/norm"] == pytest.approx(np.mean(norms[:3]), rel=1e-5)


# -- a second fit, and checkpoints ----------------------------------------------------------------------------------


def test_a_second_fit_begins_empty(tmp_path):
    used = [*every(), HessianEigenvalues(k=1)]
    fit(tmp_path, build(Stranger), loaders(), used, max_epochs=3)
    fresh = [*every(), HessianEigenvalues(k=1)]
    for callbacks in (used, fresh):
        fit(tmp_path, build(ListOfParameters), loaders(16), callbacks)
    assert [callback.values for callback in used] == [callback.values for callback in fresh]


def test_the_window_of_steps_survives_a_checkpoint(tmp_path):
    whole, rest = GradientNorm(every_n_steps=4), GradientNorm(every_n_steps=4)
    data = DataLoader([(X[:8], Y[:8])] * 3, batch_size=None)
    fit(tmp_path, build(Stranger), data, [whole])
    half = fit(tmp_path, build(Stranger), data, [GradientNorm(every_n_steps=4)], max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    pl.seed_everything(1, verbose=False)
    second = pl.Trainer(
        default_root_dir=tmp_path, callbacks=[rest], max_epochs=2, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    second.fit(build(Stranger), data, ckpt_path=tmp_path / "half.ckpt")
    assert rest.values["gradients/norm"] == pytest.approx(whole.values["gradients/norm"], rel=1e-6)
