"""What cannot be measured is refused before the first optimizer step, and the dry run leaves training as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gp import ERM
from lightning_gp.callbacks import (
    CosineSimilarity,
    GradientNorm,
    HessianEigenvalues,
    PhaseAmplitudeConsistency,
    phase_amplitude_consistency,
)
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import (
    Classifier,
    Manual,
    assert_same_training,
    build,
    examples,
    fit,
    loaders,
    manual_loss,
    sinusoid_data,
    sinusoid_maml,
)
from tests.cases import Once


def refused(tmp_path, module, data, callback, match, error=ValueError, **options):
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(error, match=match):
        fit(tmp_path, module, data, [callback], **options)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


class OwnKernel(Classifier):
    """Its kernel has no double backward: this shows only when the gradient is differentiated again."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(Once.apply(self.network(batch[0])), batch[1])


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_no_double_backward(tmp_path, options):
    watch = HessianEigenvalues(every_n_epochs=50)
    refused(
        tmp_path, build(OwnKernel), loaders(), watch, r"no double backward.*SDPBackend\.MATH", RuntimeError, **options
    )
    fit(tmp_path, build(OwnKernel), loaders(), [GradientNorm(at="probe"), CosineSimilarity()], **options)


def test_two_optimizers(tmp_path):
    def loss(module, batch):
        return Once.apply(manual_loss(module, batch))

    callback = HessianEigenvalues(loss_fn=loss)
    refused(tmp_path, build(Manual), loaders(), callback, "no double backward", RuntimeError)
    callback = GradientNorm(loss_fn=lambda module, batch: manual_loss(module, batch).detach())
    refused(tmp_path, build(Manual), loaders(), callback, "does not depend .* without detach")
    callback = CosineSimilarity(loss_fn=lambda module, batch: manual_loss(module, batch).expand(2, 2))
    refused(tmp_path, build(Manual), loaders(), callback, r"loss_fn returned .*\(2, 2\); allowed is .*take its mean")


class Environmental(ERM):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(SinusoidMLP([4]), criterion=F.mse_loss, vectorize=False)
        self.sizes = set()


class OnlySupports(Environmental):
    """Has no gradient on support sets."""

    def environment_losses(self, parameters, environments, split="query"):
        losses = super().environment_losses(parameters, environments, split)
        return losses.detach() if split == "support" else losses


class Averaged(Environmental):
    """Averages over environments."""

    def environment_losses(self, parameters, environments, split="query"):
        return super().environment_losses(parameters, environments, split).mean()


class OnceDifferentiable(Environmental):
    """Minimises what can be differentiated once only."""

    def environment_objectives(self, parameters, environments):
        return Once.apply(super().environment_objectives(parameters, environments))


def test_environments(tmp_path):
    data = sinusoid_data()
    refused(tmp_path, OnlySupports(), data, CosineSimilarity(), "environment_losses .* does not depend")
    for callback in (GradientNorm(), CosineSimilarity(), HessianEigenvalues()):
        refused(tmp_path, Averaged(), data, callback, r"shape \(\) for 1 environments; .* one loss per environment")
    callback = HessianEigenvalues(objective="training")
    refused(tmp_path, OnceDifferentiable(), data, callback, "no double backward", RuntimeError)
    fit(tmp_path, OnceDifferentiable(), data, [HessianEigenvalues()])


def test_an_inner_loop(tmp_path, monkeypatch):
    plain = phase_amplitude_consistency.run

    def without_gradient_at_the_end(*arguments, final_gradient=False, **options):
        if final_gradient:
            raise NotImplementedError("no gradient at the end")
        return plain(*arguments, **options)

    monkeypatch.setattr(phase_amplitude_consistency, "run", without_gradient_at_the_end)
    module = sinusoid_maml()
    refused(
        tmp_path, module, sinusoid_data(), PhaseAmplitudeConsistency(), "gradient at the end", NotImplementedError
    )  # fmt: skip


def test_one_environment_is_enough_and_once_is_enough(tmp_path):
    class Counting(HessianEigenvalues):
        checked = ()

        def check(self, loss, piece):
            self.checked += (len(piece.support[0]),)
            super().check(loss, piece)

    callback = Counting(every_n_epochs=2)
    fit(tmp_path, Environmental(), sinusoid_data(), [callback])
    assert callback.checked == (1,)


class Lazy(Classifier):
    """Makes its first layer at the first forward pass."""

    def __init__(self):
        super().__init__()
        self.network[0] = nn.LazyLinear(8)


class Hooked(Classifier):
    """Its step needs what its own hook prepares."""

    def on_train_batch_start(self, batch, batch_idx):
        self.weight = 1.0 + batch_idx

    def training_step(self, batch, batch_idx):
        return self.weight * super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


class Adversarial(Manual):
    """Steps its optimizers one after the other on the same graph, with dropout and noise."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.b(F.dropout(self.a(x + torch.randn_like(x)).tanh())), y)
        first, second = self.optimizers()
        gradients = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        first.step()
        second.step()
        self.seen = [*getattr(self, "seen", []), float(loss.detach())]


@pytest.mark.parametrize("module", [Lazy, Hooked, Adversarial])
def test_training_is_bitwise_the_same(tmp_path, module):
    loss_fn = manual_loss if module is Adversarial else None
    without, attached = build(module), build(module)
    fit(tmp_path, without, loaders())
    callbacks = [GradientNorm(at="probe", loss_fn=loss_fn), HessianEigenvalues(loss_fn=loss_fn, every_n_epochs=50)]
    fit(tmp_path, attached, loaders(), callbacks)
    assert_same_training(without, attached)
    assert getattr(without, "seen", None) == getattr(attached, "seen", None)


def test_more_eigenvalues_than_lazy_parameters(tmp_path):
    with pytest.raises(ValueError, match=r"k=100.*Lazy has only 99 trainable parameters; choose k <= 99"):
        fit(tmp_path, build(Lazy), loaders(), [HessianEigenvalues(k=100)])


def test_iterators_of_worker_processes_are_no_change(tmp_path):
    # DataLoader goes round its workers with itertools.cycle, which describes itself anew each time it is asked.
    without, attached = build(Classifier), build(Classifier)
    workers = {"batch_size": 8, "num_workers": 2, "persistent_workers": True}
    data = DataLoader(TensorDataset(*examples()), **workers), DataLoader(TensorDataset(*examples(16, 1)), **workers)
    fit(tmp_path, without, data)
    callback = GradientNorm(at="probe")
    fit(tmp_path, attached, data, [callback])
    assert callback.values["gradients/norm"] > 0
    assert_same_training(without, attached)
