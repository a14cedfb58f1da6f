"""The table of bad inputs: what a user might do wrong, and what the message must name.

Each row: the public name, the call, the exception, a fragment that names the cause, a fragment that names the remedy.
What the modules refuse in a Trainer is in ``tests/modules/test_refusals.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

import lightning_gp as gp
import lightning_gp.callbacks as callbacks
import lightning_gp.comparison as comparison
import lightning_gp.datamodules as data
import lightning_gp.diagnosis as diagnosis
import lightning_gp.functional as fn
import lightning_gp.modules as modules
import lightning_gp.networks as networks
import lightning_gp.reports as reports
import lightning_gp.testing as testing
import lightning_gp.theory as theory
import lightning_gp.trainability as maps
import lightning_gp.tuning as tuning
from lightning_gp.environments import Environments, as_batches, check

MISSING = Path("no-such-folder")
NAN = float("nan")


class Row(NamedTuple):
    """One mistake."""

    name: str
    call: Callable[[], object]
    error: type[Exception]
    cause: str
    remedy: str


def net() -> nn.Module:
    return networks.SinusoidMLP(hidden=(3,))


def linear() -> nn.Module:
    return nn.Linear(2, 3)


def scalar_loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
    return p["w"].square().sum()


def loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (p["w"].sum() * x - y).square().mean()


def predict(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return p["w"].sum() * x


def regression_maml() -> nn.Module:
    return gp.MAML(net(), criterion=F.mse_loss)


def one_loss(p: dict[str, torch.Tensor], environments: Environments) -> torch.Tensor:
    return environments.support[0].flatten(1).sum(1)


def constant(*_: object) -> torch.Tensor:
    return torch.zeros(())


x = torch.zeros(2, 3, 1)
w = {"w": torch.ones(2, requires_grad=True)}
path = fn.adapt(loss, w, (x, x), 0.1)
nothing = fn.Trajectory(({},), (), {})
tasks = Environments((x, x))
jacobian = fn.UpdateJacobian(scalar_loss, w)
features = torch.ones(2, 3, 2)
optima = torch.ones(2, 2)
ones = torch.ones(2)
logits = torch.zeros(2, 3, 4)

ALGORITHMS = [
    Row("ANIL", lambda: gp.ANIL(linear()), ValueError, "'head' needs a network", "pass a list of name prefixes"),
    Row("BOIL", lambda: gp.BOIL(linear()), ValueError, "adapt='body' needs", "Rename its last layer"),
    Row("ERM", lambda: gp.ERM(net(), vectorize=-1), ValueError, "vectorize=-1", "allowed are 'auto', True"),
    Row("ERM", lambda: gp.ERM(net(), criterion="mse"), TypeError, "criterion='mse'", "torch.nn.functional.mse_loss"),
    Row("ERM", lambda: gp.ERM(net(), optimizer=0.1), TypeError, "optimizer=0.1", "torch.optim.Adam"),
    Row("ERM", lambda: gp.ERM(net(), lr_scheduler=3), TypeError, "lr_scheduler=3", "give a function"),
    Row("EnvironmentModule", lambda: gp.EnvironmentModule(None), TypeError, "NoneType", "torch.nn.Module"),
    Row("EnvironmentModule", lambda: gp.EnvironmentModule(nn.ReLU()), ValueError, "ReLU", "requires a gradient"),
    Row("Environments", lambda: check(Environments((x, x[:1]))), ValueError, "x has shape (2, 3, 1) and y (1", "same"),
    Row("Environments", lambda: check(Environments((x, x), (x[:1], x[:1]))), ValueError, "2 environments", "the same"),
    Row("Environments", lambda: check(Environments(x)), TypeError, "got Tensor", "a pair (x, y) of tensors"),
    Row("Environments", lambda: check(Environments(([1], [2]))), TypeError, "got tuple", "of tensors"),
    Row("Environments", lambda: check(Environments((x[:, :0], x[:, :0]))), ValueError, "is empty", "needs examples"),
    Row("Environments", lambda: as_batches([x, x]), TypeError, "got list", "Environments(support=(x, y)"),
    Row("Environments", lambda: Environments((x, x)).split("val"), ValueError, "'val'", "'support' or 'query'"),
    Row("FOMAML", lambda: gp.FOMAML(net(), inner_lr=float("inf")), ValueError, "inner_lr=inf", "must be a finite"),
    Row("FOMAML", lambda: gp.FOMAML(net(), inner_lr="fast"), TypeError, "inner_lr='fast'", "must be a finite number"),
    Row("FOMAML", lambda: gp.FOMAML(net(), inner_lr=None), TypeError, "inner_lr=None", "or a mapping"),
    Row("GradientPenalty", lambda: gp.GradientPenalty(net(), -1.0), ValueError, "coefficient=-1.0", "at least 0"),
    Row("GradientPenalty", lambda: gp.GradientPenalty(net(), "a"), TypeError, "coefficient='a'", "a finite number"),
    Row("GradientPenalty", lambda: gp.GradientPenalty(net(), {"tail": 1.0}), ValueError, "group 'tail'", "Allowed"),
    Row("GradientPenalty", lambda: gp.GradientPenalty(net(), sign=0), ValueError, "sign=0", "+1 draws towards small"),
    Row("GradientPenalty", lambda: gp.GradientPenalty(net(), dealt="x"), ValueError, "'x'", "'episodes'"),
    Row("IRMv1", lambda: gp.IRMv1(linear(), penalty_weight=-1), ValueError, "penalty_weight=-1", "at least 0"),
    Row("IRMv1", lambda: gp.IRMv1(linear(), penalty_weight=NAN), ValueError, "penalty_weight=nan", "at least 0"),
    Row("IRMv1", lambda: gp.IRMv1(linear(), anneal_steps=-1), ValueError, "anneal_steps=-1", "at least 0"),
    Row("LIL", lambda: gp.LIL(linear(), phase_weight=-1), ValueError, "phase_weight=-1", "at least 0"),
    Row("LIL", lambda: gp.LIL(linear(), divergence="js"), ValueError, "divergence='js'", "'reverse_kl'"),
    Row("LIL", lambda: gp.LIL(linear(), detach="both"), ValueError, "detach='both'", "'approximation'"),
    Row("LIL", lambda: gp.LIL(net(), criterion=F.mse_loss), ValueError, "mse_loss", "divergence='gaussian'"),
    Row("LIL", lambda: gp.LIL(linear(), compile=True), ValueError, "compile=True", "leave both False"),
    Row("LILPretraining", lambda: gp.LILPretraining(linear(), momentum=2), ValueError, "momentum=2", "0.999"),
    Row("LILPretraining", lambda: gp.LILPretraining(linear(), weight=0), ValueError, "weight=0", "above 0"),
    Row(
        "LILPretraining", lambda: gp.LILPretraining(linear(), on_collapse="no"), ValueError, "'no'", "use one of 'warn'"
    ),
    Row("LILPretraining", lambda: gp.LILPretraining(net()), ValueError, "1 output", "at least 2 outputs"),
    Row("MAML", lambda: gp.MAML(net(), inner_steps="2"), TypeError, "inner_steps='2'", "a whole number"),
    Row("MAML", lambda: gp.MAML(net(), adapt=3), TypeError, "adapt=3", "a predicate"),
    Row("REx", lambda: gp.REx(linear(), l2=-1), ValueError, "l2=-1", "at least 0"),
    Row(
        "NamedEnvironmentModule",
        lambda: modules.NamedEnvironmentModule(nn.BatchNorm1d(2)),
        ValueError,
        "running statistics",
        "use_batch_statistics",
    ),
]
CALLBACKS = [
    Row("CosineSimilarity", lambda: callbacks.CosineSimilarity(every_n_epochs=0), ValueError, "=0", "at least 1"),
    Row("GradientNorm", lambda: callbacks.GradientNorm(at="end"), ValueError, "at='end'", "'probe', 'step'"),
    Row("GradientNorm", lambda: callbacks.GradientNorm(episodes=0), ValueError, "episodes=0", "at least 1"),
    Row("GradientNorm", lambda: callbacks.GradientNorm(during_fit=True), ValueError, "during_fit=True", "episodes=100"),
    Row("GradientNorm", lambda: callbacks.GradientNorm(split="val"), ValueError, "'val'", "'query'"),
    Row("GradientNorm", lambda: callbacks.GradientNorm(groups="layers"), ValueError, "groups='layers'", "name parts"),
    Row("Probe", lambda: callbacks.CosineSimilarity(prefix=3), TypeError, "prefix=3", "must be text"),
    Row("HessianEigenvalues", lambda: callbacks.HessianEigenvalues(k=0), ValueError, "k=0", "at least 1"),
    Row("HessianEigenvalues", lambda: callbacks.HessianEigenvalues(tol=0), ValueError, "tol=0", "1e-3"),
    Row("HessianEigenvalues", lambda: callbacks.HessianEigenvalues(objective="v"), ValueError, "'v'", "'training'"),
    Row(
        "HessianEigenvalues", lambda: callbacks.HessianEigenvalues(3, max_products=2), ValueError, "=2", "k=3, or None"
    ),
    Row("CriticalLearningRate", lambda: callbacks.CriticalLearningRate(objective="x"), ValueError, "'x'", "'training'"),
    Row("CriticalLearningRate", lambda: callbacks.CriticalLearningRate(tol=1.0), ValueError, "tol=1.0", "e.g. 0.02"),
    Row(
        "LearningRateBounds", lambda: callbacks.LearningRateBounds(optimizer=-1), ValueError, "optimizer=-1", "least 0"
    ),
    Row("LearningRateBounds", lambda: callbacks.LearningRateBounds(tol=1.0), ValueError, "tol=1.0", "e.g. 1e-2"),
    Row("LearningRateBounds", lambda: callbacks.LearningRateBounds(max_products=0), ValueError, "=0", "at least 1"),
    Row("HessianEigenvalues", lambda: callbacks.HessianEigenvalues(split="val"), ValueError, "'val'", "'query'"),
    Row("HessianEigenvalues", lambda: callbacks.HessianEigenvalues(groups=0), ValueError, "groups=0", "at least 1"),
    Row("PhaseAmplitudeConsistency", lambda: callbacks.PhaseAmplitudeConsistency(probe_size=0), ValueError, "=0", "1"),
    Row("Probe", lambda: callbacks.Probe(loss_fn="loss"), TypeError, "loss_fn='loss'", "(module, batch)"),
    Row("Probe", lambda: callbacks.Probe().measure(None), NotImplementedError, "Probe must define", "measure("),
]
DATA = [
    Row(
        "CIFARFSDataModule", lambda: data.CIFARFSDataModule(MISSING).prepare_data(), OSError, "no-such", "download=True"
    ),
    Row("FC100DataModule", lambda: data.FC100DataModule(MISSING).prepare_data(), OSError, "No CIFAR-100", "put it"),
    Row("CUBDataModule", lambda: data.CUBDataModule(MISSING).prepare_data(), OSError, "No CUB", "get CUB_200_2011.tgz"),
    Row("CUBDataModule", lambda: data.CUBDataModule(split="mine"), ValueError, "split='mine'", "'easyfsl'"),
    Row(
        "ClassFolderDataModule", lambda: data.ClassFolderDataModule(MISSING).prepare_data(), OSError, "no-such", "root"
    ),
    Row(
        "ClassFolderDataModule", lambda: data.ClassFolderDataModule(".").prepare_data(), OSError, "train", "fractions="
    ),
    Row(
        "ColoredMNISTDataModule",
        lambda: data.ColoredMNISTDataModule(str(MISSING)).setup("fit"),
        OSError,
        "no train-images-idx3-ubyte",
        "download=True",
    ),
    Row("ColoredMNISTDataModule", lambda: data.ColoredMNISTDataModule(label_noise=-1), ValueError, "=-1", "at most 1"),
    Row(
        "ColoredMNISTDataModule", lambda: data.ColoredMNISTDataModule(train_agreement=(1.0,)), ValueError, "1.0", "two"
    ),
    Row("EpisodeDataModule", lambda: data.EpisodeDataModule(val_episodes=0), ValueError, "=0 must be", "at least 1"),
    Row("EpisodeDataModule", lambda: data.EpisodeDataModule(2.5), TypeError, "environments_per_batch=2.5", "whole"),
    Row("EpisodeDataModule", lambda: data.EpisodeDataModule(seed="3"), TypeError, "seed='3'", "must be a whole number"),
    Row("EpisodeDataModule", lambda: data.EpisodeDataModule().setup("fit"), NotImplementedError, "define", "episodes("),
    Row("EpisodeDataset", lambda: data.EpisodeDataset("tran", 3, 0), ValueError, "split='tran'", "train, val, test"),
    Row("EpisodeDataset", lambda: data.EpisodeDataset("val", 3, 0)[0], NotImplementedError, "must define", "draw("),
    Row("TensorDataModule", lambda: data.TensorDataModule(x, x[:1, 0]), ValueError, "and y", "give (M, *shape)"),
    Row("EpisodeSampler", lambda: data.EpisodeSampler(5, True, 2), ValueError, "5 episodes", "a multiple of 2"),
    Row(
        "ExampleEnvironments", lambda: data.ExampleEnvironments({}), ValueError, "no train environment", "at least one"
    ),
    Row("ExampleEnvironments", lambda: data.ExampleEnvironments({"a": [1, 2]}), ValueError, "'a'", "a pair of tensors"),
    Row("ExampleEnvironments", lambda: data.ExampleEnvironments({"a": (x, x[:1])}), ValueError, "'a'", "lengths"),
    Row("FewShotDataModule", lambda: data.FewShotDataModule(shots=0), ValueError, "shots=0", "at least 1"),
    Row(
        "FewShotDataModule",
        lambda: data.FewShotDataModule(color_jitter=-1),
        ValueError,
        "=-1",
        "at least 0 and at most 1",
    ),
    Row("ImageClassDataModule", lambda: data.ImageClassDataModule(image_size=0), ValueError, "=0", "at least 1"),
    Row("LabelledDataModule", lambda: data.LabelledDataModule(3), TypeError, "of type int", "items (image, label)"),
    Row(
        "ClassFolderDataModule",
        lambda: data.ClassFolderDataModule(".", fractions=(0.5, 0.9, 0.1)),
        ValueError,
        "fractions=(0.5, 0.9, 0.1)",
        "add up to 1",
    ),
    Row("FewShotDataModule", lambda: data.FewShotDataModule(ways=1), ValueError, "ways=1", "at least 2"),
    Row("FewShotDataModule", lambda: data.FewShotDataModule(shots=1.5), TypeError, "shots=1.5", "whole number"),
    Row(
        "LinearRegressionDataModule", lambda: data.LinearRegressionDataModule(noise=-1), ValueError, "=-1", "at least 0"
    ),
    Row(
        "LinearRegressionDataModule", lambda: data.LinearRegressionDataModule(scale=(5, 0)), ValueError, "(5, 0)", "<="
    ),
    Row(
        "MiniImageNetDataModule", lambda: data.MiniImageNetDataModule(MISSING).prepare_data(), OSError, "No mini", "get"
    ),
    Row("NamedEnvironmentsDataModule", lambda: data.NamedEnvironmentsDataModule(2), ValueError, "=2", "below 1"),
    Row(
        "NamedEnvironmentsDataModule", lambda: data.NamedEnvironmentsDataModule(batch_size=0), ValueError, "=0", "None"
    ),
    Row("OmniglotDataModule", lambda: data.OmniglotDataModule(MISSING).prepare_data(), OSError, "no-such", "download"),
    Row("OmniglotDataModule", lambda: data.OmniglotDataModule(split="x"), ValueError, "split='x'", "'random1200'"),
    Row("SinusoidDataModule", lambda: data.SinusoidDataModule(dtype="float16"), ValueError, "'float16'", "float64"),
    Row("SinusoidDataModule", lambda: data.SinusoidDataModule(amplitude=(1,)), ValueError, "(1,)", "(lowest, highest)"),
    Row("SinusoidDataModule", lambda: data.SinusoidDataModule(phase=3), ValueError, "phase=3", "(lowest, highest)"),
    Row(
        "StanfordCarsDataModule", lambda: data.StanfordCarsDataModule(MISSING).prepare_data(), OSError, "No S", "copies"
    ),
    Row("StanfordCarsDataModule", lambda: data.StanfordCarsDataModule(images="x"), ValueError, "images='x'", "'train'"),
    Row(
        "TieredImageNetDataModule",
        lambda: data.TieredImageNetDataModule(MISSING).prepare_data(),
        OSError,
        "No t",
        "get",
    ),
]
NETWORKS = [
    Row("ColoredMNISTMLP", lambda: networks.ColoredMNISTMLP(hidden=0), ValueError, "hidden=0", "at least 1"),
    Row("ColoredMNISTMLP", lambda: networks.ColoredMNISTMLP(layers=0), ValueError, "layers=0", "at least 1"),
    Row("Conv4", lambda: networks.Conv4(ways=0), ValueError, "ways=0", "at least 1"),
    Row("Conv4", lambda: networks.Conv4(5, image_size=8), ValueError, "image_size=8", "at least 16 pixels"),
    Row("Conv4", lambda: networks.Conv4(5, downsample="avg"), ValueError, "'avg'", "'max_pool' or 'stride'"),
    Row("ResNet12", lambda: networks.ResNet12(5, widths=(1, 2)), ValueError, "widths=(1, 2)", "four numbers"),
    Row("SinusoidMLP", lambda: networks.SinusoidMLP(hidden=3), ValueError, "hidden=3", "hidden=(40, 40)"),
    Row("SinusoidMLP", lambda: networks.SinusoidMLP(hidden=()), ValueError, "hidden=()", "list of widths"),
    Row("load_pretrained", lambda: networks.load_pretrained(net(), "no.ckpt"), OSError, "no.ckpt", "path of a .ckpt"),
    Row("select_parameters", lambda: networks.select_parameters(net(), "tail"), ValueError, "'tail'", "Allowed: 'all'"),
    Row("use_batch_statistics", lambda: networks.use_batch_statistics("net"), TypeError, "got str", "torch.nn.Module"),
]
FUNCTIONAL = [
    Row("Trajectory", lambda: nothing.path_length, ValueError, "0 inner steps", "adapt()"),
    Row("adapt", lambda: fn.adapt(loss, w, (x, x), 0.1, steps=0), ValueError, "steps=0", "use ERM"),
    Row("adapt", lambda: fn.adapt(loss, w, (x, x), 0.1, adapted=["v"]), ValueError, "['v']", "['w']"),
    Row("adapt", lambda: fn.adapt(loss, w, (x, x), {"v": 0.1}), ValueError, "no rate for 'w'", "Give one number"),
    Row("adapt", lambda: fn.adapt(loss, w, (x, x[:1]), 0.1), ValueError, "y (1, 3, 1)", "the same number"),
    Row("adapt", lambda: fn.adapt(loss, w, (x[:0], x[:0]), 0.1), ValueError, "(0, 3, 1)", "at least 1"),
    Row("adapt", lambda: fn.adapt(constant, w, (x, x), 0.1), ValueError, "does not depend", "functional_call"),
    Row(
        "loss_gradient_ratio",
        lambda: fn.loss_gradient_ratio(path),
        ValueError,
        "1 gradients",
        "final_gradient=True",
    ),
    Row("approximation", lambda: fn.approximation(nothing), ValueError, "0 inner steps", "adapt()"),
    Row("cosine_similarity", lambda: fn.cosine_similarity({"a": x}, {"b": x}), ValueError, "['a'] and ['b']", "of one"),
    Row(
        "cosine_similarity",
        lambda: fn.cosine_similarity({"a": x}, {"a": torch.ones(3, 3, 1)}),
        ValueError,
        "[2, 3] environments",
        "the same number",
    ),
    Row(
        "environment_gradients",
        lambda: fn.environment_gradients(constant, w, (x, x)),
        ValueError,
        "depend on no parameter",
        "functional_call",
    ),
    Row("gradient_norm", lambda: fn.gradient_norm({}), ValueError, "no gradients", "dict of parameters is empty"),
    Row("gradient_penalty", lambda: fn.gradient_penalty(lambda p: p["w"], w), ValueError, "(2,)", "must be a scalar"),
    Row("gradient_penalty", lambda: fn.gradient_penalty(constant, w), ValueError, "does not depend", "dict that it is"),
    Row(
        "gradients_of_losses",
        lambda: fn.gradients_of_losses(constant, w),
        ValueError,
        "got shape ()",
        "must have shape (E",
    ),
    Row("hessian_eigenvalues", lambda: fn.hessian_eigenvalues(scalar_loss, w, 5), ValueError, "k=5", "1 <= k <= 2"),
    Row("hessian_eigenvalues", lambda: fn.hessian_eigenvalues(scalar_loss, w, tol=-1), ValueError, "tol=-1", "1e-3"),
    Row("hessian_eigenvalues", lambda: fn.hessian_eigenvalues(lambda p: p["w"], w), TypeError, "(2,)", "its mean"),
    Row(
        "hessian_vector_product", lambda: fn.hessian_vector_product(scalar_loss, {}), ValueError, "empty", "pass a dict"
    ),
    Row(
        "irmv1_penalty",
        lambda: fn.irmv1_penalty(torch.zeros(3, 2), torch.zeros(4).long(), F.cross_entropy),
        ValueError,
        "(3, 2) and (4,)",
        "class labels (K,)",
    ),
    Row(
        "irmv1_penalty",
        lambda: fn.irmv1_penalty(torch.zeros(1, 2), torch.zeros(1).long(), F.cross_entropy, unbiased=True),
        ValueError,
        "got 1",
        "at least 2 examples",
    ),
    Row(
        "linearised_adapt",
        lambda: fn.linearised_adapt(predict, F.mse_loss, w, (x, x), 0.1, steps=0),
        ValueError,
        "steps=0",
        "at least 1",
    ),
    Row("ntk_features", lambda: fn.ntk_features(lambda p, x: x, w, x), ValueError, "do not depend", "use them"),
    Row("ntk_kernels", lambda: fn.ntk_kernels(lambda p, x: x, w, x), ValueError, "do not depend", "use them"),
    Row("output_divergence", lambda: fn.output_divergence(logits, logits, "x"), ValueError, "detach='x'", "'target'"),
    Row(
        "output_divergence",
        lambda: fn.output_divergence(x, x),
        ValueError,
        "got (2, 3, 1)",
        "For regression choose divergence='gaussian'",
    ),
    Row("inner_product", lambda: fn.inner_product({"a": x}, {"b": x}), ValueError, "['a'] and ['b']", "of one"),
    Row("pairwise_cosines", lambda: fn.pairwise_cosines({}), ValueError, "no gradients", "parameters is empty"),
    Row("amplitude_consistency", lambda: fn.amplitude_consistency(predict, nothing, x), ValueError, "0", "adapt()"),
    Row("jacobian_norm", lambda: fn.jacobian_norm(predict, {}, w, x, probes=-1), ValueError, "probes=-1", "at least 0"),
    Row("linearisation_error", lambda: fn.linearisation_error(predict, nothing, x), ValueError, "0", "adapt()"),
    Row("noise_term", lambda: fn.noise_term(loss, nothing, (x, x)), ValueError, "0", "adapt()"),
    Row("phase_consistency", lambda: fn.phase_consistency(nothing), ValueError, "0 inner steps", "adapt()"),
    Row("phase_loss", lambda: fn.phase_loss(predict, path, x), ValueError, "got (2, 3, 1)", "divergence='gaussian'"),
    Row("prototype_agreement", lambda: fn.prototype_agreement(x, logits), ValueError, "(2, 3, 4)", "of one shape"),
    Row("prototype_cosine", lambda: fn.prototype_cosine(x, logits), ValueError, "(2, 3, 4)", "of one shape"),
    Row("prototype_scores", lambda: fn.prototype_scores(predict, path, x, 0), ValueError, "steps=0", "at least 1"),
    Row("UpdateJacobian", lambda: fn.UpdateJacobian(scalar_loss, {}), ValueError, "empty", "pass a dict"),
    Row(
        "environment_curvatures", lambda: fn.environment_curvatures(one_loss, {}, tasks), ValueError, "empty", "a dict"
    ),
    Row("leading_curvature", lambda: fn.leading_curvature(jacobian, tol=2.0), ValueError, "tol=2.0", "e.g. 1e-2"),
    Row(
        "leading_curvature", lambda: fn.leading_curvature(jacobian, torch.ones(3)), ValueError, "(3,)", "each of the 2"
    ),
    Row("turning_rate", lambda: fn.turning_rate(float, -1.0), ValueError, "guess=-1.0", "positive rate"),
    Row("turning_rate", lambda: fn.turning_rate(float, 1.0, tol=0.0), ValueError, "tol=0.0", "e.g. 0.02"),
    Row("third_order_operators", lambda: fn.third_order_operators(scalar_loss, {}), ValueError, "empty", "pass a dict"),
]
THEORY = [
    Row(
        "adaptation_distance",
        lambda: theory.adaptation_distance(torch.ones(3), features, optima, 0.1, 1),
        ValueError,
        "parameters have shape (3,)",
        "must be (2,)",
    ),
    Row(
        "adaptation_distance",
        lambda: theory.adaptation_distance(ones, features, optima, 0.1, -1),
        ValueError,
        "-1",
        "0",
    ),
    Row("adaptation_loss", lambda: theory.adaptation_loss(features, x, 0.1), ValueError, "optima (2, 3, 1)", "(N, d)"),
    Row("adapted_features", lambda: theory.adapted_features(ones, 0.1), ValueError, "(2,)", "must be (N, K, d)"),
    Row("critical_inner_lr", lambda: theory.critical_inner_lr([]), ValueError, "(0,)", "at least one"),
    Row(
        "critical_inner_lr_with_tg",
        lambda: theory.critical_inner_lr_with_tg(ones, ones, "x"),
        ValueError,
        "'x'",
        "weyl",
    ),
    Row("critical_outer_lr", lambda: theory.critical_outer_lr([1.0], 0.1, "x"), ValueError, "kind='x'", "'maml'"),
    Row("critical_outer_lr", lambda: theory.critical_outer_lr([1.0], -0.1), ValueError, "inner_lr=-0.1", "at least 0"),
    Row(
        "critical_outer_lr", lambda: theory.critical_outer_lr([1.0], 0.1, inner_steps=0), ValueError, "=0", "at least 1"
    ),
    Row(
        "critical_outer_lr_with_tg",
        lambda: theory.critical_outer_lr_with_tg(ones, torch.ones(3), 0.1),
        ValueError,
        "(2,) and tg_eigenvalues (3,)",
        "the same number",
    ),
    Row("effective_curvature", lambda: theory.effective_curvature(ones, ones, "x"), ValueError, "kind='x'", "'fomaml'"),
    Row("erm_solution", lambda: theory.erm_solution(features, x), ValueError, "optima (2, 3, 1)", "(N, d)"),
    Row(
        "expected_adaptation_distance",
        lambda: theory.expected_adaptation_distance(features, torch.ones(2, 3, 5), 0.1, 0.1, 1),
        ValueError,
        "new_features (2, 3, 5)",
        "must be the same",
    ),
    Row(
        "expected_adaptation_loss",
        lambda: theory.expected_adaptation_loss(features, torch.ones(2, 3, 5), 0.1),
        ValueError,
        "new_features (2, 3, 5)",
        "must be the same",
    ),
    Row("maml_solution", lambda: theory.maml_solution(features, x, 0.1), ValueError, "optima (2, 3, 1)", "(N, d)"),
    Row("update_rule", lambda: theory.update_rule(torch.optim.Rprop(w.values())), ValueError, "Rprop", "known are SGD"),
    Row(
        "network_adaptation_lr",
        lambda: theory.network_adaptation_lr(lambda p, x: x, F.mse_loss, w, x, x),
        ValueError,
        "do not depend on the parameters",
        "use them",
    ),
    Row("optimal_adaptation_lr", lambda: theory.optimal_adaptation_lr(ones), ValueError, "(2,)", "(tasks, K, d)"),
    Row(
        "optimal_adaptation_lr_from_kernels",
        lambda: theory.optimal_adaptation_lr_from_kernels(torch.ones(2, 3, 4)),
        ValueError,
        "(2, 3, 4)",
        "(tasks, R, R)",
    ),
    Row("solution_covariance", lambda: theory.solution_covariance(ones, 0.1), ValueError, "(2,)", "(N, K, d)"),
]


def rates(inner: object = (0.1,), outer: object = (0.1,), **options: object) -> object:
    return maps.TrainabilityMap(regression_maml(), data.SinusoidDataModule(), inner, outer, **options)


def module_map(**options: object) -> object:
    wanted = {"module": lambda seed, value: net(), "name": "width", "values": [0.1], "outer_lrs": [0.1], **options}
    return tuning.ModuleMap(data=data.SinusoidDataModule(), **wanted)


def cell(**options: object) -> object:
    return maps.CellTrainer(regression_maml(), maps.BatchStream([Environments((x, x))]), **options)


TRAINABILITY = [
    Row("BatchStream", lambda: maps.BatchStream([]), ValueError, "no batch", "at least one Environments"),
    Row("BatchStream", lambda: maps.BatchStream(3), TypeError, "got int", "a list of Environments"),
    Row("CellTrainer", lambda: cell(optimizer="lbfgs"), ValueError, "'lbfgs'", "'sgd', 'adam'"),
    Row("CellTrainer", lambda: cell(divergence=-1), ValueError, "divergence=-1", "above 1"),
    Row("TrainabilityMap", lambda: rates(inner=[]), ValueError, "inner_lrs is empty", "1e-4:9e-1"),
    Row("TrainabilityMap", lambda: rates(outer=[-0.1]), ValueError, "contains -0.1", "give rates above 0"),
    Row("TrainabilityMap", lambda: rates(iterations=0), ValueError, "iterations=0", "at least 1"),
    Row("TrainabilityMap", lambda: rates(seeds=()), ValueError, "seeds=[]", "at least one"),
    Row(
        "TrainabilityMap",
        lambda: maps.TrainabilityMap(net(), data.SinusoidDataModule(), [0.1], [0.1]),
        TypeError,
        "SinusoidMLP does not say what it minimises",
        "such as MAML",
    ),
    Row("plot_map", lambda: maps.plot_map(3), TypeError, "got int", "TrainabilityResult.load"),
    Row("decades", lambda: maps.decades(1, 0.1), ValueError, "1:0.1", "0 < low < high"),
    Row("merge", lambda: maps.merge([], "o"), ValueError, "nothing to merge", "name the files"),
    Row("parse_rates", lambda: maps.parse_rates("fast"), ValueError, "'fast' is no grid", "LOW:HIGH"),
]
TUNING = [
    Row("LearningRateTuner", lambda: tuning.LearningRateTuner(iterations=0), ValueError, "iterations=0", "at least 4"),
    Row("LearningRateTuner", lambda: tuning.LearningRateTuner(environments=0), ValueError, "=0", "at least 1"),
    Row("LearningRateTuner", lambda: tuning.LearningRateTuner(tolerance=-1), ValueError, "tolerance=-1", "[0, 1)"),
    Row("ModuleMap", lambda: module_map(values=[]), ValueError, "values is empty", "1e-4:9e-1"),
    Row("ModuleMap", lambda: module_map(values=[0.0, 0.1]), ValueError, "values contains 0", "above 0"),
    Row("ModuleMap", lambda: module_map(outer_lrs=[0.2, 0.1]), ValueError, "0.2 comes before 0.1", "sort it"),
    Row("ModuleMap", lambda: module_map(iterations=0), ValueError, "iterations=0", "at least 1"),
    Row("ModuleMap", lambda: module_map(divergence=1.0), ValueError, "divergence=1.0", "above 1"),
    Row("ModuleMap", lambda: module_map(module=regression_maml()), TypeError, "a MAML", "lambda seed, value"),
]
TESTING = [
    Row("check_module", lambda: testing.check_module(net, list), TypeError, "a SinusoidMLP", "lambda: MAML(network)"),
    Row("check_callback", lambda: testing.check_callback(net), TypeError, "a SinusoidMLP", "the class itself"),
    Row("check_datamodule", lambda: testing.check_datamodule(net), TypeError, "a SinusoidMLP", "the class itself"),
    Row("on_processes", lambda: testing.on_processes(print, 0), ValueError, "count=0", "at least 1"),
]
RECORDS = {
    "Card",
    "Checks",
    "ClassImages",
    "LeadingCurvature",
    "Estimate",
    "Outcome",
    "Result",
    "Row",
    "Recursion",
    "Suggestion",
    "TrainabilityResult",
    "Turn",
    "Trial",
    "UpdateRule",
}
"""Made by the package itself, not by its users."""

DIAGNOSIS = [
    Row("diagnose", lambda: diagnosis.diagnose(linear(), []), TypeError, "got Linear", "takes a LightningModule"),
    Row("diagnose", lambda: diagnosis.diagnose(regression_maml(), [], steps=0), ValueError, "steps=0", "at least 1"),
]


def of_every(package: object, *rows: tuple[type, Callable[[type], object], type[Exception], str, str]) -> list[Row]:
    """A row for each public class of a package that has none above: what its base refuses, it refuses, too."""
    named = {row.name for row in [*ALGORITHMS, *CALLBACKS, *DATA]}
    found = []
    for name in package.__all__:
        kind = getattr(package, name)
        for base, call, error, cause, remedy in rows:
            if name not in named and isinstance(kind, type) and issubclass(kind, base):
                found.append(Row(name, partial(call, kind), error, cause, remedy))
    return found


def with_arguments(kind: type, **arguments: object) -> object:
    """An object, with a folder that is not there for what it needs besides."""
    needed = [p for p in signature(kind).parameters.values() if p.default is p.empty and p.kind.name != "VAR_KEYWORD"]
    return kind(*[MISSING] * len(needed), **arguments)


ALGORITHMS += of_every(
    modules, (gp.EnvironmentModule, lambda kind: kind(None), TypeError, "NoneType", "torch.nn.Module")
)
CALLBACKS += of_every(
    callbacks, (callbacks.Probe, lambda kind: kind(every_n_epochs=0), ValueError, "every_n_epochs=0", "at least 1")
)
DATA += of_every(
    data,
    (data.EpisodeDataModule, lambda kind: with_arguments(kind, val_episodes=0), ValueError, "=0", "at least 1"),
    (data.NamedEnvironmentsDataModule, lambda kind: with_arguments(kind, batch_size=0), ValueError, "=0", "None"),
)

COMPARISON = [
    Row("mean", lambda: comparison.mean([]), ValueError, "seeds=[]", "at least one seed"),
    Row("difference", lambda: comparison.difference([1.0], [1.0, 2.0]), ValueError, "2 is longer", "argument 1"),
    Row("Comparison", lambda: comparison.Comparison({}), ValueError, "at least one name", "same seeds"),
]
COMPARE = [Row("compare", lambda: gp.compare([]), ValueError, "needs a config", "--config FILE.yaml")]
REPORTS = [Row("report", lambda: reports.report("nowhere"), FileNotFoundError, "nowhere", "folder")]

TABLES = {
    "lightning_gp": [*ALGORITHMS, *DIAGNOSIS, *COMPARE, *REPORTS],
    "lightning_gp.comparison": COMPARISON,
    "lightning_gp.reports": REPORTS,
    "lightning_gp.diagnosis": DIAGNOSIS,
    "lightning_gp.modules": ALGORITHMS,
    "lightning_gp.callbacks": CALLBACKS,
    "lightning_gp.datamodules": DATA,
    "lightning_gp.networks": NETWORKS,
    "lightning_gp.functional": FUNCTIONAL,
    "lightning_gp.theory": THEORY,
    "lightning_gp.trainability": TRAINABILITY,
    "lightning_gp.tuning": TUNING,
    "lightning_gp.testing": TESTING,
}
