"""Gradient norm under penalties of both signs: MAML beside ``GradientPenalty`` and ``IRMv1``.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lightning_gp._lightning import LightningDataModule, LightningModule, pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.datamodules.colored_mnist import ColoredMNISTDataModule
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.experiments.curves import Row, check_every, measured, write_results
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM = "gradients/norm"


@dataclass(frozen=True)
class Signs:
    """Settings of ``signs``; every run takes the same number of steps of Adam with its default rate.

    So few steps because ERM's own gradient vanishes on colored MNIST when it is trained on: the norm without penalty
    (seed 0, these examples) was 0.20 after 200 steps and 0.03 after 500.

    Attributes:
        iterations: steps of each run.
        every: steps between measurements.
        seeds: runs per point.
        inner_rates: α of MAML.
        weights: of the penalties.
        ways: classes per episode of MAML.
        environments: in a meta-batch of MAML, and in its fixed probe batch (the first meta-batch).
        channels: of MAML's Conv4.
        examples: per environment of colored MNIST.
        hidden: width of the network on colored MNIST.
    """

    iterations: int = 200
    every: int = 20
    seeds: int = 3
    inner_rates: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.4)
    weights: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0, 100.0)
    ways: int = 5
    environments: int = 8
    channels: int = 64
    examples: int = 2000
    hidden: int = 64


def signs(
    root: str = "data",
    settings: Signs | None = None,
    output: str | Path = "runs/gradient_norms",
    omniglot_root: str = "data",
) -> dict[str, Any]:
    """Gradient norm after training over the inner rate of MAML (Omniglot) and the weight of penalties (colored MNIST).

    The penalties are ``GradientPenalty`` with sign +1, on the very norm that is measured, and ``IRMv1``, on the
    derivative by one scalar. The norm is that of the last measurement, on one fixed batch of training environments.

    MAML's episodes have 1 shot and 15 queries per class. MAML is a penalty −α‖∇L‖² only to first order in α: where α is
    not small against 1/λ_max of the Hessian, that the norm grows with α is what is measured, not what the sign says.

    Args:
        root: folder that holds ``MNIST/raw``.
        settings: see ``Signs``.
        output: folder for ``signs.png``, ``.csv`` and ``.json``.
        omniglot_root: folder of the Omniglot data; see ``OmniglotDataModule``.

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if ``every`` is not in 1 … ``iterations``, or ``seeds`` is below 1.
        FileNotFoundError: if MNIST or Omniglot is missing.
    """
    settings = settings or Signs()
    check_every(settings.iterations, settings.every)
    if settings.seeds < 1:
        raise ValueError(f"seeds={settings.seeds} must be at least 1.")
    ColoredMNISTDataModule(root, examples=1).setup()  # missing files show here, not after the first curve
    OmniglotDataModule(omniglot_root, settings.ways).prepare_data()
    require_matplotlib()
    keep_freed_memory()
    start = time.perf_counter()
    rows: list[Row] = []
    for seed in range(settings.seeds):
        data = ColoredMNISTDataModule(root, examples=settings.examples, steps_per_epoch=settings.iterations, seed=seed)
        rows += [row for alpha in settings.inner_rates for row in _maml(alpha, seed, omniglot_root, settings)]
        for kind in ("gradient_penalty", "irmv1"):
            rows += [row for weight in settings.weights for row in _penalty(kind, weight, seed, data, settings)]
    norms: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["iteration"] > settings.iterations - settings.every:
            norms.setdefault(row["algorithm"], {}).setdefault(f"{row['coefficient']:g}", []).append(row[NORM])
    summary = {
        "command": "python -m lightning_gp.experiments.gradient_norms signs --root <mnist> --omniglot-root <omniglot> "
        f"--iterations {settings.iterations} --every {settings.every} --seeds {settings.seeds} "
        f"--examples {settings.examples}",
        "settings": asdict(settings),
        "norm_by_coefficient_and_seed": norms,
        "mean_norm_by_coefficient": {
            name: {coefficient: statistics.fmean(each) for coefficient, each in points.items()}
            for name, points in norms.items()
        },
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    write_results(Path(output), "signs", rows, summary, lambda panels: _draw_signs(panels, norms))
    return summary


def _maml(alpha: float, seed: int, root: str, settings: Signs) -> list[Row]:
    pl.seed_everything(seed, verbose=False)
    data = OmniglotDataModule(
        root,
        settings.ways,
        environments_per_batch=settings.environments,
        iterations_per_epoch=settings.iterations,
        seed=seed,
    )
    module = MAML(Conv4(settings.ways, settings.channels, downsample="stride"), inner_lr=alpha)
    return _norms(module, data, settings.environments, settings, algorithm="maml", coefficient=alpha, seed=seed)


def _penalty(kind: str, weight: float, seed: int, data: ColoredMNISTDataModule, settings: Signs) -> list[Row]:
    pl.seed_everything(seed, verbose=False)
    network, criterion = ColoredMNISTMLP(settings.hidden), F.binary_cross_entropy_with_logits
    module: LightningModule
    if kind == "irmv1":
        module = IRMv1(network, penalty_weight=weight, criterion=criterion)
    else:
        module = GradientPenalty(network, coefficient=weight, sign=1, criterion=criterion)
    environments = len(data.train_agreement)
    return _norms(module, data, environments, settings, algorithm=kind, coefficient=weight, seed=seed)


def _norms(
    module: LightningModule, data: LightningDataModule, environments: int, settings: Signs, **labels: Any
) -> list[Row]:
    # Full batches come again at every step: with the default probe_size the probe would hold several copies.
    probe = GradientNorm(every_n_steps=settings.every, probe_size=environments)
    note = "{algorithm} {coefficient:g}, seed {seed}".format(**labels)
    rows = measured(module, data, settings.iterations, settings.every, [probe], note)
    return [{**labels, **row} for row in rows]


def _draw_signs(panels: Sequence[Axes], norms: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    left, right = panels
    lines = (
        (left, "maml", "MAML", "tab:orange"),
        (right, "gradient_penalty", "gradient penalty, α‖∇L‖²", "tab:blue"),
        (right, "irmv1", "IRMv1", "tab:green"),
    )
    for panel, name, label, colour in lines:
        coefficients = [float(text) for text in norms[name]]
        points = list(norms[name].values())
        means = [statistics.fmean(each) for each in points]
        panel.plot(coefficients, means, color=colour, marker="o", label=label)
        panel.fill_between(coefficients, [min(p) for p in points], [max(p) for p in points], color=colour, alpha=0.2)
        smallest = min(value for value in coefficients if value > 0)
        panel.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        panel.set_xlim(left=-0.1 * smallest)
    left.set(xlabel="inner rate α", ylabel="gradient norm after training", title="negative sign: MAML, Omniglot")
    right.set(xlabel="penalty weight α", ylabel="gradient norm after training", title="positive sign: colored MNIST")
    runs = max(len(each) for points in norms.values() for each in points.values())
    for panel in panels:
        panel.set_ylim(0.0, 1.3 * panel.get_ylim()[1])  # room for the legend
        panel.legend(loc="upper right", title=f"mean and range of {runs} runs")
