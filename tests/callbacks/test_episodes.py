"""Probes in ``trainer.validate`` and ``trainer.test``: numbers, intervals, isolation, strangers' modules, refusals."""

import pytest
import pytorch_lightning as pl
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from lightning_gp import ERM
from lightning_gp.callbacks import CosineSimilarity, GradientNorm, HessianEigenvalues
from lightning_gp.callbacks.episode_values import mean_and_interval
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import (
    assert_same_training,
    build,
    examples,
    fit,
    sinusoid_data,
    sinusoid_maml,
    trainer,
)

DOUBLE = {"precision": "64-true"}
EPISODES = 5
"""Of the six that the test loader has, in two batches."""


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradient(module, x, y):
    return flat(torch.autograd.grad(F.mse_loss(module.network(x), y), list(module.network.parameters())))


def dense_hessian(loss, parameters):
    gradients = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    rows = [flat(torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)) for g in gradients]
    return torch.stack(rows)


def meta_test_data():
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(2, 3, 2, 5, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    batches = [
        Environments((x[i, :, 0], y[i, :, 0]), (x[i, :, 1], y[i, :, 1])) for i in range(2)
    ]  # two batches of three environments
    return DataLoader(batches, batch_size=None)


def each_episode(split, count=EPISODES):
    pairs = [pair for batch in meta_test_data() for pair in zip(*getattr(batch, split), strict=True)]
    return pairs[:count]


def assert_interval(values, key, numbers):
    """Mean and half-width against scipy's interval."""
    numbers = torch.as_tensor(numbers, dtype=torch.float64)
    low, high = stats.t.interval(0.95, len(numbers) - 1, loc=numbers.mean().item(), scale=stats.sem(numbers.numpy()))
    assert values[key] == pytest.approx(numbers.mean().item(), rel=1e-7, abs=1e-12)
    assert values[f"{key}_ci95"] == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-12)


def evaluate(tmp_path, module, loader, callbacks, run="test", **options):
    ours = trainer(tmp_path, callbacks, **options)
    (logged, *_) = getattr(ours, run)(module, loader, verbose=False)
    return logged


# -- numbers ------------------------------------------------------------------------------------------------------


def test_interval_is_students():
    numbers = torch.randn(7, dtype=torch.float64).tolist()
    mean, half_width = mean_and_interval(numbers)
    low, high = stats.t.interval(0.95, 6, loc=mean, scale=stats.sem(numbers))
    assert (mean - half_width, mean + half_width) == (pytest.approx(low), pytest.approx(high))
    assert mean_and_interval([2.0])[0] == 2.0
    assert torch.tensor(mean_and_interval([2.0])[1]).isnan()
    with pytest.raises(ValueError, match="no episodes"):
        mean_and_interval([])


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("split", ["query", "support"])
def test_gradient_norms(tmp_path, split, run):
    module, callback = sinusoid_maml().double(), GradientNorm(episodes=EPISODES, groups=1, split=split)
    logged = evaluate(tmp_path, module, meta_test_data(), [callback], run, **DOUBLE)
    stage = "val" if run == "validate" else "test"
    norms = [gradient(module, *episode).norm() for episode in each_episode(split)]
    assert_interval(callback.evaluated, f"{stage}/gradients/norm", norms)
    assert callback.evaluated[f"{stage}/episodes/GradientNorm"] == EPISODES
    names = ["norm", "norm/body", "norm/head"]
    keys = {f"{stage}/gradients/{name}{end}" for name in names for end in ("", "_ci95")}
    assert set(callback.evaluated) == keys | {f"{stage}/episodes/GradientNorm"}
    assert {key: logged[key] for key in callback.evaluated} == pytest.approx(callback.evaluated, rel=1e-6)
    assert callback.values == {}


def test_cosines_and_inner_products(tmp_path):
    module, callback = sinusoid_maml().double(), CosineSimilarity(episodes=EPISODES, prefix="mine/")
    evaluate(tmp_path, module, meta_test_data(), [callback], **DOUBLE)
    query, support = ([gradient(module, *episode) for episode in each_episode(split)] for split in ("query", "support"))
    cosines = [F.cosine_similarity(*pair, dim=0) for pair in zip(query, support, strict=True)]
    assert_interval(callback.evaluated, "mine/test/gradients/cosine", cosines)
    products = [q @ s for q, s in zip(query, support, strict=True)]
    assert_interval(callback.evaluated, "mine/test/gradients/inner_product", products)


@pytest.mark.parametrize("options", [{}, {"split": "support"}, {"objective": "training"}], ids=str)
def test_eigenvalues_of_each_episode(tmp_path, options):
    module = sinusoid_maml(inner_steps=2).double()
    callback = HessianEigenvalues(tol=1e-9, density=True, trace=True, episodes=3, **options)
    evaluate(tmp_path, module, meta_test_data(), [callback], **DOUBLE)
    parameters, found = list(module.network.parameters()), []
    for i in range(3):
        if "objective" in options:
            batch = Environments(*([each[i : i + 1] for each in part] for part in next(iter(meta_test_data()))))
            loss = module.environment_objectives(module.network_parameters(), batch).mean()
        else:
            x, y = each_episode(options.get("split", "query"))[i]
            loss = F.mse_loss(module.network(x), y)
        found.append(torch.linalg.eigvalsh(dense_hessian(loss, parameters)).flip(0))
    for i in (1, 2):
        assert_interval(callback.evaluated, f"test/curvature/eigenvalue_{i}", [values[i - 1] for values in found])
    assert callback.evaluated["test/curvature/converged"] == 1
    traces = torch.stack([values.sum() for values in found])
    error = abs(callback.evaluated["test/curvature/trace"] - traces.mean().item())
    assert error <= 4 * callback.evaluated["test/curvature/trace_standard_error"] + 1e-6
    assert callback.density  # the copy that measures an episode leaves it out
    assert callback.eigenvalues is None


def test_split_in_training(tmp_path):
    norm, top = GradientNorm(split="support"), HessianEigenvalues(split="support", tol=1e-9, prefix="s/")
    module = sinusoid_maml().double()
    fit(tmp_path, module, sinusoid_data(dtype="float64"), [norm, top], **DOUBLE)
    episodes = [pair for batch in norm.batch.batches for pair in zip(*batch.support, strict=True)]
    norms = torch.stack([gradient(module, *episode).norm() for episode in episodes])
    assert norm.values["gradients/norm"] == pytest.approx(norms.mean().item(), rel=1e-10)
    loss = torch.stack([F.mse_loss(module.network(x), y) for x, y in episodes]).mean()
    expected = torch.linalg.eigvalsh(dense_hessian(loss, list(module.network.parameters())))[-1].item()
    assert top.values["s/curvature/eigenvalue_1"] == pytest.approx(expected, rel=1e-8)


# -- nothing else changes -----------------------------------------------------------------------------------------


class Returns(pl.LightningModule):
    """A stranger whose evaluation steps return a loss, with all that a second run of them would disturb."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.network.to(dtype)
        self.accuracy, self.seen = Accuracy("multiclass", num_classes=3), []

    def training_step(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def _evaluate(self, batch, stage):
        logits = self.network(batch[0] + 0.1 * torch.randn_like(batch[0]))
        self.seen.append(len(logits))
        self.accuracy(logits, batch[1])
        self.log(f"{stage}/accuracy", self.accuracy)
        loss = F.cross_entropy(logits, batch[1])
        self.log(f"{stage}/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        return {"loss": self._evaluate(batch, "val")}

    def test_step(self, batch, batch_idx):
        return self._evaluate(batch, "test")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def rows(dtype=torch.float32, workers=0):
    return DataLoader(TensorDataset(*examples(20, 5, dtype)), 8, num_workers=workers)


def probes(**options):
    return [
        GradientNorm(at="probe", episodes=4, prefix="a/", **options),
        GradientNorm(episodes=4, **options),
        HessianEigenvalues(episodes=2, **options),
    ]


SETTINGS = {
    "maml": (lambda: sinusoid_maml().double(), meta_test_data, DOUBLE),
    "stranger": (lambda: build(Returns), rows, {}),
    "workers": (lambda: build(Returns), lambda: rows(workers=2), {}),
    "without inference mode": (lambda: build(Returns), rows, {"inference_mode": False}),
    "bf16": (lambda: build(Returns), rows, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("case", SETTINGS)
def test_an_evaluation_is_bitwise_what_it_was(tmp_path, case, run):
    make, data, options = SETTINGS[case]
    results, left = [], []
    for callbacks in ([], probes() + ([CosineSimilarity(episodes=4)] if case == "maml" else [])):
        module = make()
        pl.seed_everything(2, verbose=False)
        results.append(evaluate(tmp_path, module, data(), callbacks, run, **options))
        left.append((torch.rand(2), module))
        assert all(parameter.grad is None for parameter in module.parameters())
        for callback in callbacks:
            assert len(callback.evaluated) >= 3
            assert all(torch.tensor(value).isfinite() for value in callback.evaluated.values())
    assert results[0]
    assert {key: results[1][key] for key in results[0]} == results[0]
    assert torch.equal(left[0][0], left[1][0])
    assert_same_training(left[0][1], left[1][1])
    if case != "maml":
        assert left[0][1].seen == left[1][1].seen == [8, 8, 4]


@pytest.mark.parametrize("case", ["maml", "stranger"])
def test_during_a_fit_too_and_training_is_what_it_was(tmp_path, case):
    make, data, options = SETTINGS[case]
    results = []
    for callbacks in ([], probes(during_fit=True)):
        module = make()
        pl.seed_everything(2, verbose=False)
        ours = trainer(tmp_path, callbacks, **options)
        ours.fit(module, data(), data())
        results.append((module, ours.callback_metrics))
    assert_same_training(results[0][0], results[1][0])
    for key, value in results[0][1].items():
        assert torch.equal(value, results[1][1][key]), key
    for callback in callbacks:
        assert callback.values
        assert callback.evaluated.keys() <= results[1][1].keys()
        assert all(f"{callback.prefix}val/" in key for key in callback.evaluated)
    if case == "maml":
        norms = [gradient(module, *episode).norm() for episode in each_episode("query", 4)]
        assert_interval(callbacks[1].evaluated, "val/gradients/norm", norms)


def test_a_fit_and_its_sanity_check_measure_nothing_unless_asked(tmp_path):
    for callback in (GradientNorm(episodes=4), GradientNorm(episodes=4, during_fit=True)):
        module = build(Returns)
        limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0 if callback.during_fit else 2}
        trainer(tmp_path, [callback], num_sanity_val_steps=2, **limits).fit(module, rows(), rows())
        assert callback.evaluated == {}


# -- strangers ----------------------------------------------------------------------------------------------------


def test_a_strangers_batches_are_its_episodes(tmp_path):
    class Plain(Returns):
        def _evaluate(self, batch, stage):
            return F.cross_entropy(self.network(batch[0]), batch[1])

    module = build(Plain, dtype=torch.float64)
    callbacks = [GradientNorm(episodes=100), HessianEigenvalues(k=1, tol=1e-9, episodes=100)]
    evaluate(tmp_path, module, rows(torch.float64), callbacks, **DOUBLE)
    module.eval()
    losses = [F.cross_entropy(module.network(x), y) for x, y in rows(torch.float64)]
    norms = [flat(torch.autograd.grad(loss, module.parameters(), retain_graph=True)).norm() for loss in losses]
    assert_interval(callbacks[0].evaluated, "test/gradients/norm", norms)
    assert callbacks[0].evaluated["test/episodes/GradientNorm"] == 3
    hessians = [dense_hessian(loss, list(module.parameters())) for loss in losses]
    top = [torch.linalg.eigvalsh(hessian)[-1] for hessian in hessians]
    assert_interval(callbacks[1].evaluated, "test/curvature/eigenvalue_1", top)


class Silent(Returns):
    def test_step(self, batch, batch_idx):
        self._evaluate(batch, "test")


class Detached(Returns):
    @torch.no_grad()
    def test_step(self, batch, batch_idx):
        return self._evaluate(batch, "test")


class Keeps(Silent):
    """A prototype made in the loop, so a tensor that autograd cannot record."""

    def test_step(self, batch, batch_idx):
        if batch_idx == 0 and not hasattr(self, "prototype"):
            self.prototype = self.network[0](batch[0]).mean(0)
        return (self.network[0](batch[0]) * self.prototype).square().mean()


class Passes(Returns):
    def test_step(self, batch, batch_idx):
        loss = self._evaluate(batch, "test")
        return None if batch_idx == 1 else loss


def test_a_step_without_a_loss_is_refused_and_a_loss_fn_taken(tmp_path):
    with pytest.raises(ValueError, match=r"needs the loss of Silent.*test_step returns None.*loss_fn=.*episodes=None"):
        evaluate(tmp_path, build(Silent), rows(), [GradientNorm(episodes=2)])
    with pytest.raises(ValueError, match="test_step returned does not depend on the module's trainable parameters"):
        evaluate(tmp_path, build(Detached), rows(), [GradientNorm(episodes=2)])
    callback = GradientNorm(episodes=2, loss_fn=lambda module, batch: module.training_step(batch))
    module = build(Silent, dtype=torch.float64)
    evaluate(tmp_path, module, rows(torch.float64), [callback], **DOUBLE)
    module.eval()
    losses = [module.training_step(batch) for batch in list(rows(torch.float64))[:2]]
    norms = [flat(torch.autograd.grad(loss, module.parameters())).norm() for loss in losses]
    assert_interval(callback.evaluated, "test/gradients/norm", norms)


def test_tensors_made_in_inference_mode_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"Keeps keeps tensors.*Trainer\(inference_mode=False\)"):
        evaluate(tmp_path, build(Keeps), rows(), [GradientNorm(episodes=2)])
    callback = GradientNorm(episodes=2)
    evaluate(tmp_path, build(Keeps), rows(), [callback], inference_mode=False)
    assert callback.evaluated["test/gradients/norm"] > 0


def test_a_batch_that_is_passed_over_is_no_episode(tmp_path):
    callback = GradientNorm(episodes=3)
    evaluate(tmp_path, build(Passes), rows(), [callback])
    assert callback.evaluated["test/episodes/GradientNorm"] == 2


def test_several_loaders_are_told_apart(tmp_path):
    class Several(Returns):
        def test_step(self, batch, batch_idx, dataloader_idx):
            return (1 + dataloader_idx) * F.cross_entropy(self.network(batch[0]), batch[1])

    callback = GradientNorm(episodes=2)
    ours = trainer(tmp_path, [callback])
    ours.test(build(Several), [rows(), rows()], verbose=False)
    first, second = (callback.evaluated[f"test/gradients/norm/dataloader_idx_{i}"] for i in (0, 1))
    assert second == pytest.approx(2 * first, rel=1e-5)
    assert callback.evaluated["test/episodes/GradientNorm/dataloader_idx_1"] == 2
    assert callback.evaluated.keys() <= ours.callback_metrics.keys()


# -- refusals -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"episodes=0 must be a whole number"):
        GradientNorm(episodes=0)
    with pytest.raises(ValueError, match=r"during_fit=True.*episodes=100"):
        GradientNorm(during_fit=True)
    with pytest.raises(ValueError, match=r"at='step'.*Leave at='auto'"):
        GradientNorm(at="step", episodes=3)
    with pytest.raises(ValueError, match="split='both'"):
        GradientNorm(split="both")
    with pytest.raises(ValueError, match="objective='training' has both sets"):
        HessianEigenvalues(objective="training", split="support")
    with pytest.raises(ValueError, match=r"split='support' asks.*GradientNorm measures Returns"):
        fit(tmp_path, build(Returns), rows(), [GradientNorm(split="support")])
    with pytest.raises(ValueError, match=r"CosineSimilarity\(episodes=\.\.\.\) compares.*single set"):
        evaluate(tmp_path, build(Returns), rows(), [CosineSimilarity(episodes=3)])
    with pytest.raises(ValueError, match=r"k=100 eigenvalues.*only 99"):
        evaluate(tmp_path, build(Returns), rows(), [HessianEigenvalues(k=100, episodes=3)])


def test_cosines_need_a_query_set(tmp_path):
    torch.manual_seed(0)
    module = ERM(SinusoidMLP([4]), criterion=F.mse_loss).double()
    loader = DataLoader([Environments(batch.support) for batch in meta_test_data()], batch_size=None)
    with pytest.raises(ValueError, match=r"CosineSimilarity\(episodes=\.\.\.\) compares.*single set"):
        evaluate(tmp_path, module, loader, [CosineSimilarity(episodes=3)], **DOUBLE)


def test_a_step_that_cannot_be_run_twice_is_refused(tmp_path):
    class Draws(Returns):
        def on_test_start(self):
            self.stream = (torch.ones(()) for _ in range(100))

        def test_step(self, batch, batch_idx):
            return next(self.stream) * self._evaluate(batch, "test")

    with pytest.raises(ValueError, match=r"GradientNorm runs the code of Draws once more, and that changes.*stream"):
        evaluate(tmp_path, build(Draws), rows(), [GradientNorm(episodes=3)])
