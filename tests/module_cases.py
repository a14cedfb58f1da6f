"""Every module of the package with a network and data: the one list on which each test of a kind runs.

A new algorithm is one line in ``MODULES``; ``build`` and ``batches`` make what a line describes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import (
    ANIL,
    BOIL,
    ERM,
    FOMAML,
    IBIRM,
    IGA,
    LIL,
    MAML,
    ANDMask,
    Fish,
    Fishr,
    GradientPenalty,
    GroupDRO,
    ImplicitMAML,
    IRMv1,
    LILPretraining,
    MetaSGD,
    Reptile,
    REx,
)
from lightning_gp._lightning import pl
from lightning_gp.datamodules import ClassImages, ExampleEnvironments, FewShotDataModule, SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.networks import Conv4, SinusoidMLP
from lightning_gp.testing.runs import first_batches


class RandomImages(FewShotDataModule):
    def load_split(self, split):
        images = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        return ClassImages(images, np.full(4, 6), list("abcd"))


def episodes():
    """Each process has environments of its own."""
    return SinusoidDataModule(
        environments_per_batch=8, iterations_per_epoch=4, val_episodes=16, test_episodes=16, dtype="float64"
    )


def images():
    return RandomImages(
        ways=3, shots=2, queries=3, environments_per_batch=4, iterations_per_epoch=4, val_episodes=4, test_episodes=4
    )


def shared(**options):
    """Each process has a share of every environment, and with odd sizes not half of it."""
    generator = torch.Generator().manual_seed(0)

    def environment(size):
        x = torch.randn(size, 3, dtype=torch.float64, generator=generator)
        return x, (x[:, :1] + torch.randn(size, 1, dtype=torch.float64, generator=generator) > 0).double()

    return ExampleEnvironments({name: environment(size) for name, size in (("a", 9), ("b", 7), ("c", 12))}, **options)


def full_batches():
    return shared(steps_per_epoch=4)


def mini_batches():
    return shared(batch_size=4)


def classifier():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def conv():
    return Conv4(3, channels=4, image_size=16)


RATE = {"inner_lr": 0.01}
SQUARED = {"criterion": F.mse_loss}
BINARY = {"criterion": F.binary_cross_entropy_with_logits}
PENALTY = {"penalty_weight": 30.0, "anneal_steps": 2, "rescale_loss": True, "l2": 0.01}
ASCENT = {"direction": "ascent"}
SHARPNESS = {"inner_lr": 0.05, "normalize": True, **ASCENT}
MAML_PLUS_PLUS = {
    "inner_lr": 0.01,
    "inner_steps": 2,
    "learn_inner_lr": True,
    "inner_lr_per": "step",
    "multi_step_loss": 6,
}
LIL_TERMS = {**RATE, "inner_steps": 2, "divergence": "gaussian", "amplitude_weight": 0.1}


class Case(NamedTuple):
    """How to make a module and its data."""

    module: type[pl.LightningModule]
    network: Callable[[], nn.Module]
    data: Callable[[], pl.LightningDataModule]
    options: dict[str, Any]


MODULES = {
    "MAML": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "inner_steps": 2}),
    "MAML, learned rates": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "learn_inner_lr": True}),
    "MAML, chunks": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "vectorize": 3}),
    "MAML, recomputed": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "recompute": True}),
    "FOMAML": Case(FOMAML, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "MAML, ascent": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, **ASCENT}),
    "FOMAML, sharpness-aware": Case(FOMAML, SinusoidMLP, episodes, {**SHARPNESS, **SQUARED}),
    "MAML++": Case(MAML, SinusoidMLP, episodes, {**MAML_PLUS_PLUS, **SQUARED}),
    "MetaSGD": Case(MetaSGD, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "Reptile": Case(Reptile, SinusoidMLP, episodes, {**RATE, **SQUARED, "inner_steps": 3}),
    "ImplicitMAML": Case(ImplicitMAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "inner_steps": 3, "cg_steps": 2}),
    "ANIL": Case(ANIL, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "BOIL": Case(BOIL, SinusoidMLP, episodes, {**RATE, **SQUARED}),
    "LIL": Case(LIL, SinusoidMLP, episodes, {**LIL_TERMS, **SQUARED}),
    "LIL, ascent, MAML++": Case(LIL, SinusoidMLP, episodes, {**LIL_TERMS, **SQUARED, **MAML_PLUS_PLUS, **ASCENT}),
    "LILPretraining": Case(LILPretraining, conv, images, {"inner_lr": 0.4, "momentum": 0.9}),
    "ERM": Case(ERM, SinusoidMLP, episodes, SQUARED),
    "ERM, shares": Case(ERM, classifier, full_batches, BINARY),
    "ERM, shares of mini-batches": Case(ERM, classifier, mini_batches, BINARY),
    "GradientPenalty": Case(GradientPenalty, SinusoidMLP, episodes, {**SQUARED, "coefficient": 0.01, "sign": -1}),
    "GradientPenalty, shares": Case(GradientPenalty, classifier, full_batches, {**BINARY, "coefficient": 0.5}),
    "GradientPenalty, shares of mini-batches": Case(GradientPenalty, classifier, mini_batches, BINARY),
    "IRMv1": Case(IRMv1, SinusoidMLP, episodes, {**SQUARED, **PENALTY}),
    "IRMv1, shares": Case(IRMv1, classifier, full_batches, {**BINARY, **PENALTY}),
    "IRMv1, shares of mini-batches": Case(IRMv1, classifier, mini_batches, {**BINARY, **PENALTY}),
    "REx": Case(REx, SinusoidMLP, episodes, {**SQUARED, **PENALTY}),
    "REx, shares": Case(REx, classifier, full_batches, {**BINARY, **PENALTY}),
    "REx, shares of mini-batches": Case(REx, classifier, mini_batches, {**BINARY, **PENALTY}),
    "IGA": Case(IGA, SinusoidMLP, episodes, {**SQUARED, "penalty_weight": 0.1}),
    "IGA, shares of mini-batches": Case(IGA, classifier, mini_batches, {**BINARY, **PENALTY}),
    "Fishr": Case(Fishr, SinusoidMLP, episodes, {**SQUARED, "penalty_weight": 0.1}),
    "Fishr, shares of mini-batches": Case(Fishr, classifier, mini_batches, {**BINARY, **PENALTY, "head": "2"}),
    "IBIRM": Case(IBIRM, SinusoidMLP, episodes, {**SQUARED, **PENALTY}),
    "IBIRM, shares of mini-batches": Case(IBIRM, classifier, mini_batches, {**BINARY, **PENALTY, "head": "2"}),
    "ANDMask": Case(ANDMask, SinusoidMLP, episodes, {**SQUARED, "agreement": 0.7}),
    "ANDMask, shares of mini-batches": Case(ANDMask, classifier, mini_batches, BINARY),
    "GroupDRO": Case(GroupDRO, SinusoidMLP, episodes, SQUARED),
    "GroupDRO, shares of mini-batches": Case(GroupDRO, classifier, mini_batches, BINARY),
    "Fish, shares of mini-batches": Case(Fish, classifier, mini_batches, {**BINARY, "inner_lr": 0.1}),
    "MAML, weighted": Case(MAML, SinusoidMLP, episodes, {**RATE, **SQUARED, "weighting": "pcgrad"}),
    "ERM, weighted shares": Case(ERM, classifier, full_batches, {**BINARY, "weighting": "upgrad"}),
}


VARIANTS = {
    "MAML, learned rates",
    "MAML, chunks",
    "MAML, recomputed",
    "FOMAML, sharpness-aware",
    "MAML++",
    "MetaSGD",
    "LIL, ascent, MAML++",
    "ANIL",
    "BOIL",
    "LILPretraining",
    "ERM, shares",
    "ERM, shares of mini-batches",
    "GradientPenalty",
    "GradientPenalty, shares of mini-batches",
    "IRMv1",
    "IRMv1, shares",
    "REx, shares",
    "REx, shares of mini-batches",
    *(f"{kind}, shares of mini-batches" for kind in ("IGA", "Fishr", "IBIRM", "ANDMask", "GroupDRO", "Fish")),
    *("IGA", "Fishr", "IBIRM", "ANDMask", "GroupDRO"),
    *("MAML, weighted", "ERM, weighted shares"),
}
"""Names that differ from another one in an option: what trains them for seconds is left to ``pytest -m slow``."""


def trained_cases() -> list[Any]:
    """Every name, as parameters of a test that trains for seconds."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in MODULES]


def build(name: str) -> pl.LightningModule:
    """The module of a case, in float64; the same weights each time."""
    case = MODULES[name]
    pl.seed_everything(0, verbose=False)
    # float32 weights are made first and then widened, so that every run starts from the same numbers
    return case.module(case.network(), **case.options).double()


def batches(name: str, count: int) -> list[list[Environments]]:
    """The first training batches of a case, epoch after epoch, in float64."""
    return first_batches(MODULES[name].data(), count)
