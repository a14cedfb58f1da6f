"""Gradient norm under penalties of both signs: MAML beside ``GradientPenalty`` and ``IRMv1``.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lightning_gp._lightning import LightningModule, pl
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.checks import whole
from lightning_gp.datamodules import ColoredMNISTDataModule, OmniglotDataModule
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.plots import canvas, require_matplotlib
from lightning_gp.runs.folders import kept
from lightning_gp.runs.training import Row, check_every, measured, write_results
from lightning_gp.trainability.grid import check_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORM = "gradients/norm"


@dataclass(frozen=True)
class Curves:
    """Settings of MAML's runs, all of Adam with its default rate.

    Attributes:
        iterations: of each run.
        every: iterations between measurements.
        ways: classes per episode of MAML.
        environments: in a meta-batch of MAML, and in the fixed batch that is measured (the first meta-batch).
        channels: of MAML's Conv4.
    """

    iterations: int = 1500
    every: int = 50
    ways: int = 5
    environments: int = 8
    channels: int = 64


@dataclass(frozen=True)
class Signs(Curves):
    """Settings of the runs of ``signs``; see ``Curves``.

    So few iterations because ERM's own gradient vanishes on colored MNIST when it is trained on: the norm without
    penalty (seed 0, these examples) was 0.20 after 200 and 0.03 after 500.

    Attributes:
        examples: per environment of colored MNIST.
        hidden: width of the network on colored MNIST.
    """

    iterations: int = 200
    every: int = 20
    examples: int = 2000
    hidden: int = 64


SIGNS = Signs()


def signs(
    root: str = "data",
    omniglot_root: str = "data",
    settings: Signs = SIGNS,
    seeds: Sequence[int] = (0, 1, 2),
    inner_rates: Sequence[float] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.4),
    weights: Sequence[float] = (0.0, 0.1, 1.0, 10.0, 100.0),
    output: Path = Path("runs/gradient_norms"),
) -> dict[str, Any]:
    """Gradient norm after training over the inner rate of MAML (Omniglot) and the weight of penalties (colored MNIST).

    MAML pulls towards large gradients, penalties towards small ones [T21, Eq. 1-2 and section VI]. The penalties are
    ``GradientPenalty`` with sign +1, on the very norm that is measured, and ``IRMv1``, on the derivative by one scalar.
    The norm is that of the last measurement, on one fixed batch of training environments. Some 40 minutes on one core;
    a finished run is kept.

    MAML's episodes have 1 shot and 15 queries per class. MAML is a penalty −α‖∇L‖² only to first order in α: where α is
    not small against 1/λ_max of the Hessian, that the norm grows with α is what is measured, not what the sign says.

    Args:
        root: folder that holds MNIST/raw.
        omniglot_root: folder of the Omniglot data.
        settings: see Signs.
        seeds: one run each per point; one number N stands for 0 … N − 1.
        inner_rates: α of MAML.
        weights: of the penalties.
        output: folder for signs.png, .csv and .json.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a number is out of range, or the folder holds runs of other settings.
        FileNotFoundError: if MNIST or Omniglot is missing.
    """
    check_every(settings.iterations, settings.every)
    check_seeds(seeds)
    whole(1, **asdict(settings))
    ColoredMNISTDataModule(root, examples=1).setup()  # missing files show here, not after the first curve
    OmniglotDataModule(omniglot_root, settings.ways).prepare_data()
    require_matplotlib()
    points = {"maml": inner_rates, "gradient_penalty": weights, "irmv1": weights}
    rows: list[Row] = []
    seconds = 0.0
    for seed in seeds:
        data = ColoredMNISTDataModule(root, examples=settings.examples, steps_per_epoch=settings.iterations, seed=seed)
        for name, coefficient in ((name, each) for name, coefficients in points.items() for each in coefficients):
            run = partial(maml_curve, root=omniglot_root) if name == "maml" else partial(_penalty, kind=name, data=data)
            path = output / "curves" / f"signs-{name}-{coefficient:g}-seed{seed}.json"
            result = kept(path, asdict(settings), partial(run, coefficient, seed, settings))
            labels = {"algorithm": name, "coefficient": coefficient, "seed": seed}
            rows += [{**labels, **row} for row in result["rows"]]
            seconds += result["seconds"]
    norms: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["iteration"] > settings.iterations - settings.every:
            norms.setdefault(row["algorithm"], {}).setdefault(f"{row['coefficient']:g}", []).append(row[NORM])
    summary = {
        "command": "lightning-gp reproduce gradient-norms signs --root <mnist> --omniglot-root <omniglot> "
        f"--iterations {settings.iterations} --every {settings.every} --seeds [{','.join(map(str, seeds))}] "
        f"--examples {settings.examples}",
        "settings": {**asdict(settings), "seeds": list(seeds)},
        "norm_by_coefficient_and_seed": norms,
        "mean_norm_by_coefficient": {
            name: {coefficient: statistics.fmean(each) for coefficient, each in points.items()}
            for name, points in norms.items()
        },
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    write_results(output, "signs", rows, summary, _draw(norms))
    return summary


def maml_curve(
    alpha: float, seed: int, settings: Curves, root: str, kinds: Sequence[Callable[..., Probe]] = (GradientNorm,)
) -> dict[str, Any]:
    """What probes of ``kinds`` measure while MAML trains on Omniglot, 1 shot, 15 queries, on the first meta-batch."""
    pl.seed_everything(seed, verbose=False)
    data = OmniglotDataModule(
        root,
        settings.ways,
        environments_per_batch=settings.environments,
        iterations_per_epoch=settings.iterations,
        seed=seed,
    )
    module = MAML(Conv4(settings.ways, settings.channels, downsample="stride"), inner_lr=alpha)
    probes = [kind(every_n_steps=settings.every, probe_size=settings.environments) for kind in kinds]
    return measured(module, data, settings.iterations, settings.every, probes, f"maml {alpha:g}, seed {seed}")


def _penalty(weight: float, seed: int, settings: Signs, kind: str, data: ColoredMNISTDataModule) -> dict[str, Any]:
    pl.seed_everything(seed, verbose=False)
    network, criterion = ColoredMNISTMLP(settings.hidden), F.binary_cross_entropy_with_logits
    module: LightningModule
    if kind == "irmv1":
        module = IRMv1(network, penalty_weight=weight, criterion=criterion)
    else:
        module = GradientPenalty(network, coefficient=weight, sign=1, criterion=criterion)
    # Full batches come again at every step: with the default probe_size the probe would hold several copies.
    probe = GradientNorm(every_n_steps=settings.every, probe_size=len(data.train_agreement))
    note = f"{kind} {weight:g}, seed {seed}"
    return measured(module, data, settings.iterations, settings.every, [probe], note)


def _draw(norms: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure, panels = canvas(2, width=5, height=4)
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
    return figure
