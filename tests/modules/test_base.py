"""Training and evaluation through Lightning's own Trainer with default settings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import ANIL, BOIL, ERM, FOMAML, MAML, EnvironmentModule
from lightning_gp._lightning import pl
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.modules.statistics import EpisodeInterval, EpisodeMean
from lightning_gp.networks import SinusoidMLP
from tests.cases import flat, images, regression


def trainer(**options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{**defaults, "enable_model_summary": False, **options})


def sinusoids(**options) -> SinusoidDataModule:
    defaults = {"environments_per_batch": 8, "iterations_per_epoch": 10, "val_episodes": 24, "test_episodes": 40}
    return SinusoidDataModule(**{**defaults, **options})


def maml(cls=MAML, **options):
    torch.manual_seed(0)
    return cls(SinusoidMLP(), **{"inner_lr": 0.01, "criterion": F.mse_loss, **options})


class Images(torch.utils.data.Dataset):
    """One Conv4 problem as a data set of episodes."""

    def __init__(self, count: int = 6) -> None:
        self.batch = images(count=count).environments

    def __len__(self) -> int:
        return len(self.batch.support[0])

    def __getitem__(self, index: int) -> Environments:
        (xs, ys), (xq, yq) = self.batch
        return Environments((xs[index], ys[index]), (xq[index], yq[index]))


def test_maml_learns_to_adapt():
    module, data = maml(optimizer=lambda p: torch.optim.Adam(p, 5e-3)), sinusoids(iterations_per_epoch=300)
    run = trainer(max_epochs=1)
    before = run.test(module, data, verbose=False)[0]
    run.fit(module, data)
    after = run.test(module, data, verbose=False)[0]
    assert after["test/loss"] < 0.6 * before["test/loss"]
    assert after["test/loss"] < 0.9 * after["test/loss_step_0"]


@pytest.mark.parametrize("cls", [MAML, FOMAML, ANIL, BOIL])
def test_every_variant_fits_validates_and_tests_with_the_default_trainer(cls):
    module = maml(cls, inner_steps=2, eval_inner_steps=3)
    run = trainer(max_epochs=2)
    run.fit(module, sinusoids())
    assert {"train/loss", "val/loss", *(f"val/loss_step_{k}" for k in range(4))} <= set(run.callback_metrics)
    for results in (
        run.validate(module, sinusoids(), verbose=False)[0],
        run.test(module, sinusoids(), verbose=False)[0],
    ):
        assert all(math.isfinite(value) for value in results.values())
    assert results["test/loss"] == results["test/loss_step_3"]
    assert results["test/loss_step_3_ci95"] > 0


def test_evaluation_is_the_adapted_loss_of_each_episode():
    problem = images(count=6)
    module = MAML(problem.fresh(), problem.inner_lr, 1, eval_inner_steps=2)
    loader = torch.utils.data.DataLoader(
        Images(),
        batch_size=4,
        collate_fn=lambda items: __import__("lightning_gp.environments").environments.stack(items),
    )
    results = trainer().test(module, loader, verbose=False)[0]
    for step in range(3):
        reference = MAML(problem.fresh(), problem.inner_lr, max(step, 1), vectorize=False)
        if step == 0:
            losses = reference.environment_losses(reference.network_parameters(), problem.environments)
        else:
            losses = reference.environment_objectives(reference.network_parameters(), problem.environments)
        assert results[f"test/loss_step_{step}"] == pytest.approx(losses.mean().item(), rel=1e-6)
        half_width = 1.96 * losses.std().item() / math.sqrt(6)
        assert results[f"test/loss_step_{step}_ci95"] == pytest.approx(half_width, rel=1e-5)
    assert 0 <= results["test/accuracy"] <= 1


def test_evaluation_holds_no_graph_and_leaves_no_gradient():
    problem = regression()
    module = MAML(problem.fresh(), 0.1, criterion=problem.criterion, inner_steps=3)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.numel()) or t, lambda t: t):
        values = module.evaluate(problem.environments)
    assert not any(value.requires_grad for value in values.values())
    assert all(parameter.grad is None for parameter in module.parameters())
    # Only the support loss is ever recorded: 5 of the 11 points of each environment, and no second derivative.
    with_graph = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: with_graph.append(t.numel()) or t, lambda t: t):
        module.training_loss(problem.environments)
    assert sum(stored) < 0.5 * sum(with_graph)


def test_two_runs_agree_bitwise():
    weights = []
    for _ in range(2):
        pl.seed_everything(3, verbose=False)
        module = maml()
        trainer(max_epochs=2).fit(module, sinusoids())
        weights.append(flat(module.parameters()))
    assert torch.equal(*weights)


def test_chunks_train_like_the_whole():
    weights = []
    for vectorize in (True, 3):
        module = maml(vectorize=vectorize).double()
        run = trainer(max_epochs=1, precision="64-true", accumulate_grad_batches=2, gradient_clip_val=0.5)
        run.fit(module, sinusoids(dtype="float64"))
        weights.append(flat(module.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-12)


def test_schedulers_and_optimizers_are_the_users():
    module = maml(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1),
    )
    run = trainer(max_epochs=2)
    run.fit(module, sinusoids())
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


def test_learned_rates_are_trained_and_saved(tmp_path):
    module = maml(learn_inner_lr=True, inner_lr_per="element")
    run = trainer(max_epochs=1)
    run.fit(module, sinusoids())
    rates = module.inner_rates()
    assert all((rate != 0.01).any() for rate in rates.values())
    run.save_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    loaded = MAML.load_from_checkpoint(tmp_path / "m.ckpt", network=SinusoidMLP(), criterion=F.mse_loss)
    assert torch.equal(loaded.inner_rates()["head.weight"], rates["head.weight"])


@pytest.mark.parametrize("cls", [MAML, FOMAML, ANIL, BOIL])
def test_checkpoints_restore_the_arguments(cls, tmp_path):
    module = maml(cls, inner_lr=0.07, inner_steps=2)
    run = trainer(max_epochs=1)
    run.fit(module, sinusoids())
    run.save_checkpoint(tmp_path / "m.ckpt")
    torch.load(tmp_path / "m.ckpt", weights_only=True)
    loaded = cls.load_from_checkpoint(tmp_path / "m.ckpt", network=SinusoidMLP(), criterion=F.mse_loss)
    assert (loaded.inner_steps, loaded.first_order, loaded.adapted) == (2, module.first_order, module.adapted)
    assert loaded.inner_rates() == module.inner_rates()


def test_a_subclass_with_its_own_loss_trains_and_reports_it():
    class Huber(MAML):
        def loss(self, parameters, x, y):
            return F.huber_loss(self.predict(parameters, x), y)

    torch.manual_seed(0)
    module, data = Huber(SinusoidMLP(), inner_lr=0.01), sinusoids()
    result = trainer().test(module, data, verbose=False)[0]
    batches = list(data.test_dataloader())
    values = [module.environment_losses(module.network_parameters(), batch) for batch in batches]
    assert result["test/loss_step_0"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-5)


def test_erm_minimises_the_mean_over_environments():
    problem = regression()
    module = ERM(problem.fresh(), criterion=problem.criterion)
    x, y = problem.environments.query
    torch.testing.assert_close(
        module.training_loss(problem.environments), F.mse_loss(module.network(x.flatten(0, 1)), y.flatten(0, 1))
    )
    results = trainer().test(ERM(SinusoidMLP(), criterion=F.mse_loss), sinusoids(), verbose=False)[0]
    assert set(results) == {"test/loss", "test/loss_ci95", "test/objective", "test/objective_ci95"}


def test_dropout_differs_between_environments_and_repeats_with_the_seed():
    x = torch.ones(4, 10, 1)
    environments = Environments((x, x), (x, x))
    network = nn.Sequential(nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    module = EnvironmentModule(network, criterion=F.mse_loss)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(module.environment_losses(module.network_parameters(), environments))
    assert torch.equal(*losses)
    assert losses[0].unique().numel() == 4


def test_bf16_mixed_trains():
    module = maml()
    trainer(max_epochs=1, precision="bf16-mixed").fit(module, sinusoids())
    assert flat(module.parameters()).isfinite().all()


def test_statistics_do_not_depend_on_how_episodes_are_batched():
    values = torch.rand(20)
    for kind, wanted in (
        (EpisodeMean, values.mean().item()),
        (EpisodeInterval, 1.96 * values.std().item() / math.sqrt(20)),
    ):
        whole, parts = kind(), kind()
        whole.update(values)
        for piece in values.split([3, 7, 1, 9]):
            parts.update(piece)
        torch.testing.assert_close(whole.compute(), parts.compute())
        assert whole.compute().item() == pytest.approx(wanted, rel=1e-5)


def test_modules_can_be_copied():
    module = maml(learn_inner_lr=True)
    assert flat(copy.deepcopy(module).parameters()).equal(flat(module.parameters()))
