"""Networks of other people in the modules: right, one environment at a time if need be, or refused before a step.

A new network is one line in ``NETWORKS`` (it must train), ``STATEFUL`` or ``NO_TENSOR`` (it must be refused).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.data import DataLoader

from lightning_gp import ANIL, ERM, FOMAML, LIL, MAML, Environments, GradientPenalty, IRMv1, REx
from lightning_gp._lightning import pl
from tests.cases import flat

CLASSES = 4
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(5, 7, batch_first=True), nn.Linear(7, CLASSES)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)
        self.into = nn.Linear(5, 6)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.body(self.into(x)).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.body = nn.Linear(5, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        z = self.into(x)
        return self.head(self.body(z, z, z)[0].mean(1))


class Flash(Attention):
    def forward(self, x):
        z = self.into(x).unsqueeze(1)
        return self.head(F.scaled_dot_product_attention(z, z, z, is_causal=True)[:, 0].mean(1))


class Square(torch.autograd.Function):
    """An old style of function, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Python(nn.Module):
    """Code that looks at values."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.body, self.head, self.seen = kind, nn.Linear(20, 8), nn.Linear(8, CLASSES), []

    def forward(self, x):
        z = self.body(x.flatten(1))
        if self.kind == "item":
            self.seen.append(z.mean().item())
        elif self.kind == "if" and z.abs().max() > 0.1:
            z = z / 2
        elif self.kind == "mask":
            z = z.clone()
            z[z < 0] = 0.1
        elif self.kind == "function":
            z = Square.apply(z)
        elif self.kind == "nonzero":
            z = z * len(z[z > 0].nonzero())
        elif self.kind == "numpy":
            z = z * float(z.detach().numpy().std())
        return self.head(z)


class Output(dict):
    """As the dict-like outputs of transformers."""


class WithLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(20, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        hidden = self.body(x.flatten(1))
        return Output(logits=self.head(hidden.tanh()), hidden=hidden)


class LowRank(nn.Module):
    """A frozen layer and a trained update of rank 1."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(20, 8).requires_grad_(False)
        self.down, self.up, self.head = nn.Linear(20, 1, bias=False), nn.Linear(1, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        z = x.flatten(1)
        return self.head((self.base(z) + self.up(self.down(z))).tanh())


class Words(nn.Module):
    """An embedding of whole numbers, 0 the padding where it is named."""

    def __init__(self, **options):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, **options), nn.Linear(80, CLASSES)

    def forward(self, x):
        words = x.flatten(1).abs().mul(2).long().clamp(max=5)
        return self.head(self.table(words).tanh().flatten(1))


class Normalising(nn.Module):
    """Prototypes that the forward pass brings to length 1, in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, CLASSES)

    def forward(self, x):
        self.layer.weight.data.div_(self.layer.weight.data.norm(dim=1, keepdim=True))
        return self.layer(x.flatten(1))


class Tempered(nn.Module):
    """A parameter without axes."""

    def __init__(self):
        super().__init__()
        self.layer, self.temperature = nn.Linear(20, CLASSES), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.layer(x.flatten(1)) * self.temperature


def tied():
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Linear(20, CLASSES))
    network[3].weight = network[1].weight
    return network


NETWORKS = {
    "RNN": lambda: Recurrent(nn.RNN),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "transformer encoder": Encoder,
    "multi-head attention": Attention,
    "causal attention kernel": Flash,
    **{f"Python: {kind}": lambda kind=kind: Python(kind) for kind in ("item", "if", "mask", "function", "nonzero")},
    "Python: numpy": lambda: Python("numpy"),
    "dict with logits": WithLogits,
    "low rank": LowRank,
    "tied weights": tied,
    "scalar parameter": Tempered,
    "embedding": Words,
    "embedding with padding": lambda: Words(padding_idx=0),
    "embedding with padding at the end": lambda: Words(padding_idx=-1),
    "embedding by frequency": lambda: Words(scale_grad_by_freq=True),
    "sparse embedding": lambda: Words(sparse=True),
    "group norm": lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(18, CLASSES)),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(20, CLASSES))),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(20, CLASSES)),
    "PReLU": lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.PReLU(), nn.Linear(8, CLASSES)),
}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def examples(count):
        x = torch.randn(3, count, 4, 5, generator=generator, dtype=torch.float64)
        return x, torch.randint(CLASSES, (3, count), generator=generator)

    return Environments(examples(6), examples(7))


def make(network, kind=MAML, **options):
    torch.manual_seed(1)
    rate = {} if kind in (ERM, IRMv1, REx, GradientPenalty) else {"inner_lr": 0.3}
    return kind(NETWORKS[network]().double(), **rate, **options)


def by_hand(module, environments, first_order):
    """MAML of one inner step, environment by environment, by plain autograd."""
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def loss(parameters, x, y):
        out = functional_call(module.network, parameters, (x,))
        return F.cross_entropy(out if isinstance(out, torch.Tensor) else out["logits"], y)

    trained = {name: p for name, p in module.network.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in module.network.named_parameters() if not p.requires_grad}
    total = 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for x, y, xq, yq in zip(*environments.support, *environments.query, strict=True):
            gradients = torch.autograd.grad(
                loss({**trained, **frozen}, x, y),
                list(trained.values()),
                create_graph=not first_order,
                materialize_grads=True,
            )
            adapted = {n: p - 0.3 * g for (n, p), g in zip(trained.items(), gradients, strict=True)}
            total = total + loss({**frozen, **adapted}, xq, yq) / 3
        gradients = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
        return total, [gradient.to_dense() for gradient in gradients]


@pytest.mark.parametrize("kind", [MAML, FOMAML])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradient_is_that_of_a_loop_by_hand(network, kind):
    module = make(network, kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cannot be computed for several environments at once")
        loss = module.training_loss(batch())
    loss.backward()
    expected, gradients = by_hand(module, batch(), kind is FOMAML)
    torch.testing.assert_close(loss.detach(), expected.detach())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.network.parameters() if p.requires_grad]
    torch.testing.assert_close(flat(found), flat(gradients), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [MAML, FOMAML, ANIL, LIL, ERM, IRMv1, REx, GradientPenalty])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_trains_validates_tests_and_predicts(network, kind):
    if kind is ANIL and "head" not in dict(NETWORKS[network]().named_children()):
        kind = MAML
    module = make(network, kind)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", precision="64-true", **QUIET)
    loader = DataLoader([batch(0), batch(1)], batch_size=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cannot be computed for several environments at once")
        trainer.fit(module, loader, loader)
        results = trainer.test(module, loader, verbose=False)[0]
        (outputs, _) = trainer.predict(module, loader)
    assert torch.isfinite(torch.tensor(list(results.values()))).all()
    assert outputs.shape == (3, 7, CLASSES)


SEEN = "Python: if"


def test_falling_back_is_said_once_and_asking_for_it_is_refused():
    module = make(SEEN)
    with pytest.warns(UserWarning, match=r"Python cannot be computed for several.*one at a time"):
        module.training_loss(batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.training_loss(batch(1))
        make(SEEN, vectorize=False).training_loss(batch())
    for asked in (True, 2):
        with pytest.raises(RuntimeError, match=rf"vectorize={asked}: Python.*vectorize=False"):
            make(SEEN, vectorize=asked).training_loss(batch())


# -- what is refused --------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Running statistics of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, CLASSES)
        self.register_buffer("centre", torch.zeros(20))

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.centre.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return self.layer(x - self.centre)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, CLASSES)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1)) / (1 + self.calls)


class Assigning(Centred):
    """A new tensor in the buffer's place."""

    def forward(self, x):
        x = x.flatten(1)
        self.centre = 0.5 * self.centre + 0.5 * x.detach().mean(0)
        return self.layer(x - self.centre)


STATEFUL = {
    "running mean": Centred,
    "counter": Counting,
    "assigned buffer": Assigning,
    "spectral norm": lambda: nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(20, CLASSES))),
    "parametrised spectral norm": lambda: nn.Sequential(
        nn.Flatten(), parametrizations.spectral_norm(nn.Linear(20, CLASSES))
    ),
    "embedding of bounded length": lambda: Words(max_norm=0.1),
    "prototypes": Normalising,
}


@pytest.mark.parametrize("vectorize", ["auto", True, False])
@pytest.mark.parametrize("kind", [MAML, FOMAML, ERM, GradientPenalty])
@pytest.mark.parametrize("network", STATEFUL)
def test_states_that_change_are_refused_and_left_as_they_were(network, kind, vectorize):
    torch.manual_seed(0)
    module = kind(STATEFUL[network]().double(), vectorize=vectorize)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"changes its (buffers|parameters) .*all environments"):
        module.training_loss(batch())
    assert all(torch.equal(value, before[name]) for name, value in module.network.state_dict().items())


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, CLASSES)

    def forward(self, x):
        return self.layer(x.flatten(1)), x


class Named(NamedTuple):
    scores: torch.Tensor


class NoLogits(Pair):
    def forward(self, x):
        return {"scores": super().forward(x)[0]}


class InATuple(Pair):
    def forward(self, x):
        return Named(super().forward(x)[0])


@pytest.mark.parametrize("network", [Pair, NoLogits, InATuple])
@pytest.mark.parametrize("kind", [MAML, ERM, IRMv1])
def test_what_is_no_tensor_names_predict(network, kind):
    with pytest.raises(TypeError, match=rf"{network.__name__} returns a .*predict\(parameters, x\)"):
        kind(network().double()).training_loss(batch())


# -- losses that cannot train -----------------------------------------------------------------------------------

LOSSES = {
    "cross-entropy of one column": (1, F.cross_entropy, lambda y: y[..., None].double()),
    "a constant": (1, lambda z, y: torch.zeros(()), lambda y: y[..., None].double()),
    "detached": (1, lambda z, y: (z.detach() - y).square().mean(), lambda y: y[..., None].double()),
    "rounded": (1, lambda z, y: (z.round() - y).square().mean(), lambda y: y[..., None].double()),
    "broadcast": (1, lambda z, y: (z - y).square().mean(), lambda y: y.double()),
    "not reduced": (1, lambda z, y: (z - y).square().mean(1), lambda y: y[..., None].double()),
    "labels beyond the outputs": (2, F.cross_entropy, lambda y: y + 1),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [MAML, ERM, GradientPenalty])
def test_a_loss_that_cannot_train_is_refused(kind, loss):
    outputs, criterion, target = LOSSES[loss]
    (x, y), (xq, yq) = batch()
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, outputs)).double()
    with pytest.raises(ValueError):  # noqa: PT011  (each has its own message)
        kind(network, criterion=criterion).training_loss(Environments((x, target(y)), (xq, target(yq))))


def test_a_loss_that_is_minimal_already_is_not():
    x = torch.rand(2, 5, 1, dtype=torch.float64)
    network = nn.Linear(1, 1).double()
    y = network(x).detach()
    assert MAML(network, criterion=F.mse_loss).training_loss(Environments((x, y), (x, y))).item() == 0


# -- batches that a loader has put together once more ------------------------------------------------------------


def single(seed):
    (x, y), (xq, yq) = batch(seed)
    return Environments((x[0], y[0]), (xq[0], yq[0]))


@pytest.mark.parametrize("size", [1, 2])
def test_whole_batches_in_a_collating_loader_are_refused(size):
    x = torch.rand(4, 10, 1)
    batches = [Environments((x, 2 * x), (x, 2 * x))] * 4
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    with pytest.raises(ValueError, match=r"batch_size=None"):
        trainer.fit(MAML(nn.Linear(1, 1), criterion=F.mse_loss), DataLoader(batches, batch_size=size))


@pytest.mark.parametrize("size", [1, 3])
def test_single_environments_in_a_collating_loader_are_not(size):
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", precision="64-true", **QUIET)
    trainer.fit(make("transformer encoder"), DataLoader([single(seed) for seed in range(3)], batch_size=size))
    assert trainer.global_step == 3 // size
