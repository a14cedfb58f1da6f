"""Penalties of both signs, seen in the gradient norm: two figures, every number measured by callbacks in a Trainer.

    python -m lightning_gp.experiments.gradient_norms omniglot --root data
    python -m lightning_gp.experiments.gradient_norms signs --root data

The first compares MAML with its own α = 0 on Omniglot [T21, Figs. 2a and 3a]. The second puts MAML, which pulls towards
large gradients, beside penalties that pull towards small ones [T21, Eq. 1-2 and section VI]. Each writes a picture, the
curves as CSV and a summary as JSON. The gradient norm is that of SPEC: mean_τ ‖∇L_τ(θ)‖ at the unadapted parameters.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lightning_gp._lightning import Callback, LightningDataModule, LightningModule, pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.cosine_similarity import CosineSimilarity
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.datamodules.colored_mnist import ColoredMNISTDataModule
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.datamodules.sinusoid import SinusoidDataModule
from lightning_gp.files import replacing
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.sinusoid import SinusoidMLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM, COSINE = "gradients/norm", "gradients/cosine"
Row = dict[str, Any]


class _Curve(Callback):
    """Keeps what the probes before it in the Trainer's list have measured, one row per measurement."""

    def __init__(self, probes: Sequence[Probe], every: int, note: str) -> None:
        self.probes, self.every, self.note = probes, every, note
        self.rows: list[Row] = []
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every:
            return
        values = {key: value for probe in self.probes for key, value in probe.values.items()}
        self.rows.append({"iteration": trainer.global_step, **values})
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        seconds = time.perf_counter() - self._start
        print(f"{self.note}: iteration {trainer.global_step}/{trainer.max_steps}, {shown}, {seconds:.0f} s", flush=True)


def measured(
    module: LightningModule, data: LightningDataModule, iterations: int, every: int, probes: Sequence[Probe], note: str
) -> list[Row]:
    """Trains, and returns the probes' values: one row per measurement, with its ``iteration``."""
    curve = _Curve(probes, every, note)
    trainer: Any = pl.Trainer(
        max_steps=iterations,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*probes, curve],
    )
    trainer.fit(module, data)
    return curve.rows


def _check(iterations: int, every: int) -> None:
    if not 1 <= every <= iterations:
        raise ValueError(f"every={every} must be at least 1 and at most iterations={iterations}.")


# -- MAML on Omniglot -------------------------------------------------------------------------------------------


def omniglot(
    root: str = "data",
    iterations: int = 1500,
    every: int = 50,
    seed: int = 0,
    output: str | Path = "runs/gradient_norms",
    inner_lr: float = 0.4,
    channels: int = 64,
    ways: int = 5,
    environments: int = 8,
) -> dict[str, Any]:
    """MAML and its own α = 0 on Omniglot, 1 shot, 15 queries: the same weights to start from, the same episodes.

    Args:
        root: folder of the Omniglot data; see ``OmniglotDataModule``.
        iterations: outer Adam steps of each run.
        every: iterations between measurements.
        seed: of weights and episodes.
        output: folder for ``omniglot.png``, ``.csv`` and ``.json``.
        inner_lr: α of the MAML run.
        channels: of Conv4.
        ways: classes per episode.
        environments: in a meta-batch, and in the fixed probe batch (the first meta-batch).

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if ``every`` is not in 1 … ``iterations``.
        FileNotFoundError: if there are no data.
    """
    _check(iterations, every)
    keep_freed_memory()
    start = time.perf_counter()
    curves: dict[str, list[Row]] = {}
    for name, alpha in (("maml", inner_lr), ("alpha_0", 0.0)):
        pl.seed_everything(seed, verbose=False)
        module = MAML(Conv4(ways, channels, downsample="stride"), inner_lr=alpha)
        data = OmniglotDataModule(
            root, ways=ways, environments_per_batch=environments, iterations_per_epoch=iterations, seed=seed
        )
        kinds: tuple[Callable[..., Probe], ...] = (GradientNorm, CosineSimilarity)
        probes = [kind(every_n_steps=every, probe_size=environments) for kind in kinds]
        curves[name] = measured(module, data, iterations, every, probes, f"Omniglot, inner rate {alpha:g}")
    cosines = [row[COSINE] for row in curves["maml"]]
    norms = {name: statistics.fmean(row[NORM] for row in rows[len(rows) // 2 :]) for name, rows in curves.items()}
    pairs = list(zip(curves["maml"], curves["alpha_0"], strict=True))
    summary = {
        "command": f"python -m lightning_gp.experiments.gradient_norms omniglot --root <omniglot> "
        f"--iterations {iterations} --every {every} --seed {seed}",
        "inner_lr": inner_lr,
        "environments_per_batch": environments,
        "measurements": len(cosines),
        "share_of_positive_cosines": statistics.fmean(cosine > 0 for cosine in cosines),
        "smallest_cosine": min(cosines),
        "norm_mean_later_half": norms,
        "norm_ratio_later_half": norms["maml"] / norms["alpha_0"],
        "share_of_measurements_with_larger_norm": statistics.fmean(one[NORM] > other[NORM] for one, other in pairs),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    rows = [{"run": name, **row} for name, each in curves.items() for row in each]
    _write(Path(output), "omniglot", rows, summary, lambda panels: _draw_omniglot(panels, curves, inner_lr))
    return summary


def _draw_omniglot(panels: Sequence[Axes], curves: Mapping[str, list[Row]], inner_lr: float) -> None:
    styles = {"maml": (f"MAML, α = {inner_lr:g}", "tab:orange"), "alpha_0": ("α = 0", "tab:blue")}
    left, right = panels
    for name, (label, colour) in styles.items():
        steps = [row["iteration"] for row in curves[name]]
        right.plot(steps, [row[NORM] for row in curves[name]], color=colour, label=label)
        if name == "maml":
            left.plot(steps, [row[COSINE] for row in curves[name]], color=colour, label=label)
    left.axhline(0.0, color="black", linestyle="--", linewidth=1, label="zero")
    left.set(xlabel="iteration", ylabel="cosine similarity", title="query against support gradient")
    left.set_ylim(bottom=min(-0.1, left.get_ylim()[0]))
    right.set(xlabel="iteration", ylabel="gradient norm at the unadapted parameters", title="norm of query gradient")
    right.set_ylim(bottom=0.0)
    for panel in panels:
        panel.legend()


# -- both signs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signs:
    """Settings of ``signs``; every run takes the same number of Adam steps, T21's 500."""

    iterations: int = 500
    every: int = 50
    seeds: int = 3
    inner_rates: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    weights: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0)
    environments: int = 100
    examples: int = 2000
    hidden: int = 64


def signs(
    root: str = "data", settings: Signs | None = None, output: str | Path = "runs/gradient_norms"
) -> dict[str, Any]:
    """Gradient norm after training over the inner rate of MAML (sinusoids) and the weight of penalties (colored MNIST).

    The penalties are ``GradientPenalty`` with sign +1, on the very norm that is measured, and ``IRMv1``, on the
    derivative by one scalar. The norm is that of the last measurement, on one fixed batch of training environments.

    Args:
        root: folder that holds ``MNIST/raw``.
        settings: see ``Signs``.
        output: folder for ``signs.png``, ``.csv`` and ``.json``.

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if ``every`` is not in 1 … ``iterations``, or ``seeds`` is below 1.
        FileNotFoundError: if MNIST is missing.
    """
    settings = settings or Signs()
    _check(settings.iterations, settings.every)
    if settings.seeds < 1:
        raise ValueError(f"seeds={settings.seeds} must be at least 1.")
    ColoredMNISTDataModule(root, examples=1).setup()  # missing files show here, not after the first curve
    start = time.perf_counter()
    rows: list[Row] = []
    for seed in range(settings.seeds):
        data = ColoredMNISTDataModule(root, examples=settings.examples, steps_per_epoch=settings.iterations, seed=seed)
        rows += [row for alpha in settings.inner_rates for row in _maml(alpha, seed, settings)]
        for kind in ("gradient_penalty", "irmv1"):
            rows += [row for weight in settings.weights for row in _penalty(kind, weight, seed, data, settings)]
    norms: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["iteration"] > settings.iterations - settings.every:
            norms.setdefault(row["algorithm"], {}).setdefault(f"{row['coefficient']:g}", []).append(row[NORM])
    summary = {
        "command": "python -m lightning_gp.experiments.gradient_norms signs --root <mnist> "
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
    _write(Path(output), "signs", rows, summary, lambda panels: _draw_signs(panels, norms))
    return summary


def _maml(alpha: float, seed: int, settings: Signs) -> list[Row]:
    pl.seed_everything(seed, verbose=False)
    module = MAML(SinusoidMLP(), inner_lr=alpha, criterion=F.mse_loss)
    data = SinusoidDataModule(
        environments_per_batch=settings.environments, iterations_per_epoch=settings.iterations, seed=seed
    )
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
        (left, "maml", "MAML, sinusoids", "tab:orange"),
        (right, "gradient_penalty", "gradient penalty, colored MNIST", "tab:blue"),
        (right, "irmv1", "IRMv1, colored MNIST", "tab:green"),
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
    left.set(xlabel="inner rate α", ylabel="gradient norm after training", title="negative sign: the norm grows")
    right.set(xlabel="penalty weight α", ylabel="gradient norm after training", title="positive sign: the norm falls")
    right.set_yscale("log")
    for panel in panels:
        panel.legend()


# -- files and the command line ---------------------------------------------------------------------------------


def _write(folder: Path, name: str, rows: Sequence[Row], summary: Row, draw: Callable[[Sequence[Axes]], None]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with replacing(folder / f"{name}.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / f"{name}.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(list(figure.subplots(1, 2)))
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, dpi=120, format="png")
    print(f"Picture: {folder / name}.png   Curves: {name}.csv   Summary: {name}.json", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m lightning_gp.experiments.gradient_norms", description="Figures of the gradient norm; see the module."
    )
    commands = parser.add_subparsers(dest="figure", required=True)
    maml = commands.add_parser("omniglot", help="MAML against its own inner rate 0 on Omniglot, about 15 minutes")
    maml.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    maml.add_argument("--iterations", type=int, default=1500, help="of each run (default: %(default)s)")
    maml.add_argument("--seed", type=int, default=0, help="of weights and episodes (default: %(default)s)")
    both = commands.add_parser("signs", help="MAML beside positive penalties, a few minutes")
    both.add_argument("--root", default="data", help="folder that holds MNIST/raw (default: %(default)s)")
    both.add_argument("--iterations", type=int, default=Signs.iterations, help="of each run (default: %(default)s)")
    both.add_argument("--seeds", type=int, default=Signs.seeds, help="runs per point (default: %(default)s)")
    both.add_argument("--examples", type=int, default=Signs.examples, help="per environment (default: %(default)s)")
    for each in (maml, both):
        each.add_argument("--every", type=int, default=50, help="iterations between values (default: %(default)s)")
        each.add_argument("--output", type=Path, default=Path("runs/gradient_norms"), help="(default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    torch.set_num_threads(1)  # as the stated times are meant; a step is too small to gain from more
    if options.pop("figure") == "omniglot":
        omniglot(**options)
        return
    root, output = options.pop("root"), options.pop("output")
    signs(root, Signs(**options), output)


if __name__ == "__main__":
    main()
