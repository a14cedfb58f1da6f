"""What each callback says that it logs: in its keys, in its docstring, in the docs, and in a run."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

from lightning_gp import MAML
from lightning_gp.callbacks import (
    CosineSimilarity,
    CriticalLearningRate,
    GradientNoise,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
    UpdateStatistics,
)
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from lightning_gp.testing.probes import probe_classes
from tests.callbacks.callback_cases import Manual, build, fit, loaders

DOCS = Path(__file__).parents[2] / "docs" / "callbacks"
PROBES = probe_classes()


def data(query):
    torch.manual_seed(0)
    x, y = torch.randn(3, 6, 1), torch.randint(3, (3, 6))
    return torch.utils.data.DataLoader([Environments((x, y), (x, y) if query else None)] * 2, batch_size=None)


def maml():
    torch.manual_seed(0)
    return MAML(SinusoidMLP([8], out_features=3), criterion=F.cross_entropy, inner_lr=0.01)


RUNS = {
    GradientNorm: [
        (maml, lambda: data(True), lambda: [GradientNorm(groups=1, histogram=True)]),
        (lambda: build(Manual), loaders, lambda: [GradientNorm()]),
    ],
    CosineSimilarity: [
        (maml, lambda: data(False), lambda: [CosineSimilarity(matrix=True)]),
        (maml, lambda: data(True), lambda: [CosineSimilarity()]),
    ],
    PhaseAmplitudeConsistency: [(maml, lambda: data(True), lambda: [PhaseAmplitudeConsistency(prototype=True)])],
    HessianEigenvalues: [
        (
            maml,
            lambda: data(True),
            lambda: [HessianEigenvalues(trace=True, density=True, per_environment=True, groups=1, preconditioned=True)],
        ),
        (maml, lambda: data(True), lambda: [HessianEigenvalues(products="differences")]),
    ],
    CriticalLearningRate: [(maml, lambda: data(True), lambda: [CriticalLearningRate(per_environment=True)])],
    LearningRateBounds: [(maml, lambda: data(True), lambda: [LearningRateBounds()])],
    GradientNoise: [(maml, lambda: data(True), lambda: [GradientNoise(groups=1)])],
    UpdateStatistics: [(maml, lambda: data(True), lambda: [UpdateStatistics(groups=1)])],
}


def runs_of(cls):
    """Those above, or what a callback logs by default."""
    return RUNS.get(cls, [(maml, lambda: data(True), lambda: [cls()])])


@pytest.mark.parametrize("cls", PROBES)
def test_a_run_logs_the_keys_and_no_others(tmp_path, cls):
    found = set()
    for i, (make, loader, build_callbacks) in enumerate(runs_of(cls)):
        folder, attached = tmp_path / str(i), build_callbacks()
        fit(folder, make(), loader(), attached, logger=CSVLogger(folder), log_every_n_steps=1)
        found |= attached[0].values.keys()
        found |= {
            re.sub(r"-step=\d+$", "", picture.stem).replace("_", "/", 1) for picture in folder.rglob("figures/*.png")
        }
    patterns = {key.name: key.pattern for key in cls.keys}
    for key in found:
        assert any(re.fullmatch(pattern, key) for pattern in patterns.values()), key
    for name, pattern in patterns.items():
        assert any(re.fullmatch(pattern, key) for key in found), name


@pytest.mark.parametrize("cls", PROBES)
def test_the_docstring_names_them(cls):
    rows = re.findall(r"^\| ``(.+?)`` \| (.+) \| ?(.*?) ?\|$", inspect.getdoc(cls).replace("\\\n", ""), re.MULTILINE)
    assert [(name, limits, meaning) for name, meaning, limits in rows if "/" in name] == [
        tuple(key) for key in cls.keys
    ]


@pytest.mark.parametrize("cls", PROBES)
def test_the_row_in_the_docs_names_some_of_them(cls):
    page = cls.__module__.rpartition(".")[2]
    rows = re.findall(rf"\{{doc\}}`{page}` \| (.*)", (DOCS / "index.md").read_text())
    if not rows:
        pytest.skip(f"{page} is in the list of pages, and not in the table of the first callbacks")
    named = set(re.findall(r"`([\w/<>]+)`", rows[0].split(" | ")[0]))
    assert named
    assert named <= {key.name for key in cls.keys}
