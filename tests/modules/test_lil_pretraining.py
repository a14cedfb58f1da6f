from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import FOMAML, Environments, LILPretraining
from lightning_gp._lightning import pl
from lightning_gp.modules.collapse import output_variance, prototype_accuracy
from lightning_gp.networks import Conv4, SinusoidMLP, load_pretrained
from tests.cases import flat, images, relative_error


def by_hand(module, environments):
    """The objective of each environment in a loop, double backward through the written-out step."""
    names = [name for name, _ in module.network.named_parameters()]
    losses = []
    for (x, y), query in zip(zip(*environments.support, strict=True), environments.query[0], strict=True):

        def slope(values, x=x, y=y):
            out = torch.func.functional_call(module.network, dict(zip(names, values, strict=True)), x)
            return torch.autograd.grad(F.cross_entropy(out, y), values, create_graph=True)

        xi = [parameter.detach().clone().requires_grad_() for parameter in module.teacher.parameters()]
        length = 0.0
        for _ in range(module.inner_steps):
            before = xi
            xi = [(p - 0.4 * g).detach().requires_grad_() for p, g in zip(before, slope(before), strict=True)]
            length += flat(xi).sub(flat(before)).norm().item()
        target = (
            torch.func.functional_call(module.network, dict(zip(names, xi, strict=True)), query).detach().softmax(1)
        )
        theta = list(module.network.parameters())
        first = slope(theta)
        hat = [p - length * g / flat(first).norm() for p, g in zip(theta, first, strict=True)]
        q = module.predictor(torch.func.functional_call(module.network, dict(zip(names, hat, strict=True)), query))
        losses.append(module.weight * (target * (target.log() - q.log_softmax(1))).sum(1).mean())
    return torch.stack(losses)


def pretraining(problem, **options):
    torch.manual_seed(1)
    module = LILPretraining(problem.fresh(), inner_lr=problem.inner_lr, predictor_hidden=7, **options).double()
    with torch.no_grad():  # the teacher somewhere else than the student
        for parameter in module.teacher.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("vectorize", [True, 2, False])
def test_loss_and_gradient_equal_a_loop_with_double_backward(vectorize):
    problem = images()
    module = pretraining(problem, vectorize=vectorize)
    reference = by_hand(module, problem.environments).mean()
    expected = torch.autograd.grad(reference, module.trained_parameters())
    loss = module.training_loss(problem.environments)
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-10)
    assert relative_error(flat(p.grad for p in module.trained_parameters()), flat(expected)) < 1e-9
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_gradient_against_finite_differences():
    problem = images(smooth=True)
    module = pretraining(problem)
    module.predictor[2] = nn.Tanh()
    module.training_loss(problem.environments).backward()
    inputs = module.trained_parameters()
    direction = [torch.randn_like(parameter) for parameter in inputs]
    slope = sum((p.grad * d).sum() for p, d in zip(inputs, direction, strict=True)).item()
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(inputs, direction, strict=True):
                parameter += step * along
        values.append(module.training_loss(problem.environments).item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_student_equal_to_teacher_and_one_step_has_no_loss():
    problem = images()
    module = LILPretraining(problem.fresh(), inner_lr=0.4, inner_steps=1, predictor_hidden=0)
    assert module.training_loss(problem.environments).item() == pytest.approx(0, abs=1e-12)


def test_a_zero_first_gradient_gives_no_nan():
    problem = images()
    module = LILPretraining(problem.fresh(), inner_lr=0.4)
    with torch.no_grad():
        for parameter in (*module.network.parameters(), *module.teacher.parameters()):
            parameter.zero_()
    support, query = problem.environments.support, problem.environments.query
    module.double().training_loss(Environments(support, query)).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.trained_parameters())


class Batches(pl.LightningDataModule):
    """Fixed episodes; ``garble`` makes the query labels nonsense."""

    ways = 3

    def __init__(self, garble=False, count=6):
        super().__init__()
        self.batches = [images(2, seed).environments for seed in range(count)]
        if garble:
            self.batches = [Environments(b.support, (b.query[0], b.query[1] * 0 - 7)) for b in self.batches]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.batches[:2], batch_size=None)


def fit(module, data=None, ckpt_path=None, **options):
    settings = {"max_epochs": 1, "limit_val_batches": 0, "logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, **settings
    )
    trainer.fit(module, data or Batches(), ckpt_path=ckpt_path)
    return trainer


def test_query_labels_are_never_read():
    weights = []
    for garble in (False, True):
        module = pretraining(images(), momentum=0.9)
        fit(module, Batches(garble))
        weights.append(flat(module.state_dict().values()))
    assert torch.equal(*weights)


def test_support_labels_are():
    module = pretraining(images())
    (x, y), query = images().environments
    other = Environments((x, (y + y.gt(0)) % 3), query)
    assert module.training_loss(images().environments) != module.training_loss(other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_is_the_closed_form_average_once_per_optimizer_step(accumulate):
    module, path = pretraining(images(), momentum=0.8), []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if len(path) < trainer.global_step:
                path.append(flat(pl_module.network.parameters()).detach().clone())

    start = flat(module.teacher.parameters()).clone()
    fit(module, accumulate_grad_batches=accumulate, callbacks=[Record()])
    n = 6 // accumulate
    assert len(path) == n
    expected = 0.8**n * start + 0.2 * sum(0.8 ** (n - 1 - i) * theta for i, theta in enumerate(path))
    assert relative_error(flat(module.teacher.parameters()), expected) < 1e-13


def test_a_resumed_run_ends_like_one_that_was_never_stopped(tmp_path):
    whole = pretraining(images(), momentum=0.8)
    fit(whole, max_epochs=2)
    half = pretraining(images(), momentum=0.8)
    fit(half).save_checkpoint(tmp_path / "half.ckpt")
    resumed = pretraining(images(), momentum=0.8)
    torch.nn.init.zeros_(next(resumed.teacher.parameters()))
    fit(resumed, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(flat(whole.state_dict().values()), flat(resumed.state_dict().values()))


def test_another_algorithm_starts_from_the_checkpoint(tmp_path):
    module = pretraining(images())
    path = tmp_path / "lil.ckpt"
    fit(module).save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["momentum"] == 0.999
    started = FOMAML(load_pretrained(images(seed=3).fresh(), path), inner_lr=0.4)
    assert torch.equal(flat(started.network.parameters()), flat(module.network.parameters()))
    again = LILPretraining.load_from_checkpoint(path, network=images(seed=3).fresh())
    assert torch.equal(flat(again.double().teacher.parameters()), flat(module.teacher.parameters()))
    assert again.inner_steps == 3
    with pytest.raises(ValueError, match=r"another network than this Conv4: .*head\.weight is .* in the checkpoint"):
        load_pretrained(Conv4(5, channels=4, image_size=16), path)


def test_measures_of_collapse():
    logits = torch.randn(6, 3, dtype=torch.float64)
    p = logits.softmax(1)
    assert output_variance(logits) == pytest.approx(((p - p.mean(0)) ** 2).mean(0).sum().item())
    support = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 2])
    query = torch.tensor([[1.0], [4.0], [9.0], [5.0]]), torch.tensor([0, 2, 2, 1])
    assert prototype_accuracy(support, query, 4).item() == 0.5


def test_the_monitor_logs_and_stays_silent_on_a_healthy_network():
    module = pretraining(images())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The pre-training has collapsed")
        trainer = fit(module, limit_val_batches=2)
    assert trainer.callback_metrics["val/teacher_variance"] > 1e-4
    assert 0 <= trainer.callback_metrics["val/probe_accuracy"] <= 1
    assert "val/accuracy_step_3" in trainer.callback_metrics


def test_a_collapse_warns_or_raises():
    def collapsed(**options):
        module = pretraining(images(), momentum=1, **options)
        nn.init.zeros_(module.teacher.head.weight)
        module.inner_rates.initial = dict.fromkeys(module.inner_rates.initial, 0.0)
        return module

    with pytest.warns(UserWarning, match="collapsed at step 6: the variance of the teacher's outputs is 0"):
        fit(collapsed(), limit_val_batches=2)
    with pytest.raises(RuntimeError, match="predictor_hidden > 0"):
        fit(collapsed(on_collapse="error"), limit_val_batches=2)


def test_a_probe_that_falls_to_chance_is_a_collapse_also_after_resuming():
    before, module = pretraining(images()), pretraining(images(), on_collapse="error")
    before._probe_worked = True
    checkpoint = {"state_dict": before.state_dict()}
    before.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    for block in list(module.network.body)[:4]:
        nn.init.zeros_(block[1].weight)
        nn.init.zeros_(block[1].bias)
    with pytest.raises(RuntimeError, match=r"nearest-class-mean accuracy 0\.333 \(chance 0\.333\)"):
        fit(module, limit_val_batches=2, limit_train_batches=1, max_epochs=1, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"weight": 0.0}, "weight=0.0"),
        ({"predictor_hidden": -1}, "predictor_hidden=-1"),
        ({"on_collapse": "stop"}, "on_collapse='stop'"),
        ({"learn_inner_lr": True}, "learn_inner_lr=True"),
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"recompute": True}, "overrides environment_terms"),
        ({"criterion": F.mse_loss}, "criterion"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        LILPretraining(Conv4(3, channels=4, image_size=16), **options)


def test_a_regression_network_is_refused():
    with pytest.raises(ValueError, match="last linear layer of 1 output"):
        LILPretraining(SinusoidMLP())
