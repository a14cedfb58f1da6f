"""The tuner's learning rates against those that the papers picked by hand, after the same number of iterations.

[F17] C. Finn, P. Abbeel, S. Levine (2017), Model-agnostic meta-learning for fast adaptation of deep networks: α = 0.01
on sinusoids and 0.4 on Omniglot, 5-way 1-shot, with Adam of rate 0.001 outside.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective, section IX-A: the same problems with 100 and 32 environments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lightning_gp._lightning import LightningDataModule, pl
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.datamodules.sinusoid import SinusoidDataModule
from lightning_gp.files import replacing
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.plots import require_matplotlib
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.plot import canvas
from lightning_gp.trainability.stream import BatchStream
from lightning_gp.trainability.suggestion import Suggestion
from lightning_gp.trainability.tuner import LearningRateTuner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HAND_PICKED = {"sinusoid": (0.01, 0.001), "omniglot": (0.4, 0.001)}
ITERATIONS = {"sinusoid": 5000, "omniglot": 1000}
STEPS = {"sinusoid": 200, "omniglot": 60}
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Settings:
    """Settings of ``compare``: of the two trainings, and ``steps`` of each of the tuner's."""

    problem: str = "sinusoid"
    iterations: int = 5000
    steps: int = 200
    environments: int = 100
    channels: int = 64
    seed: int = 0
    device: str = "cpu"
    root: str = "data"


def compare(settings: Settings, output: str | Path = "runs/tuner") -> dict[str, Any]:
    """Tunes, then trains with the suggestion and with the papers' rates from the same weights on the same episodes.

    These episodes are others than those of the probing runs, and new ones at each iteration, so that the training
    objective is that of unseen environments.

    Args:
        settings: see ``Settings``.
        output: folder for ``<problem>.json``, ``<problem>.png`` (curves) and ``<problem>_tuning.png``.

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if the problem is unknown, or there are fewer than 10 iterations.
        FileNotFoundError: if there is no Omniglot.
    """
    if settings.problem not in HAND_PICKED:
        raise ValueError(f"problem={settings.problem!r} is unknown; use one of {', '.join(HAND_PICKED)}.")
    if settings.iterations < 10:
        raise ValueError(f"iterations={settings.iterations} must be at least 10.")
    require_matplotlib()
    module = problem_module(settings)
    start = time.perf_counter()
    suggestion = LearningRateTuner(settings.steps, seed=settings.seed, progress=_say).tune(
        module, problem_data(settings, settings.seed), settings.device
    )
    tuning_seconds = time.perf_counter() - start
    print(f"\n{suggestion.report()}\n", flush=True)
    stream = BatchStream(problem_data(settings, settings.seed + 1), settings.device)
    train = CellTrainer(module, stream, "adam", seed=settings.seed)
    rates = {"suggested": (suggestion.inner_lr, suggestion.outer_lr), "papers'": HAND_PICKED[settings.problem]}
    curves = {name: _curve(train, name, *each, settings.iterations) for name, each in rates.items()}
    final = {name: _late(curve, settings.iterations) for name, curve in curves.items()}
    summary = {
        "command": f"lightning-gp reproduce tuner {settings.problem} --iterations {settings.iterations} "
        f"--steps {settings.steps} --environments {settings.environments} --channels {settings.channels} "
        f"--seed {settings.seed} --device {settings.device}",
        "settings": {name: value for name, value in asdict(settings).items() if name != "root"},
        "rates": rates,
        "loss_in_last_tenth": final,
        "at_least_as_good": final["suggested"] <= final["papers'"],
        "tuning": suggestion.as_dict(),
        "tuning_seconds": round(tuning_seconds),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    _write(Path(output), settings, summary, curves, suggestion)
    return summary


def problem_module(settings: Settings) -> MAML:
    """MAML on the problem, with the papers' rates."""
    pl.seed_everything(settings.seed, verbose=False)
    inner_lr = HAND_PICKED[settings.problem][0]
    if settings.problem == "sinusoid":
        return MAML(SinusoidMLP(), inner_lr=inner_lr, criterion=F.mse_loss)
    return MAML(Conv4(5, settings.channels, downsample="stride"), inner_lr=inner_lr)


def problem_data(settings: Settings, seed: int) -> LightningDataModule:
    """Its episodes."""
    options = {
        "environments_per_batch": settings.environments,
        "iterations_per_epoch": max(settings.iterations, settings.steps) + 1,
        "seed": seed,
    }
    if settings.problem == "sinusoid":
        return SinusoidDataModule(**options)  # type: ignore[arg-type]
    return OmniglotDataModule(settings.root, **options)  # type: ignore[arg-type]


def _curve(train: CellTrainer, name: str, inner_lr: float, outer_lr: float, iterations: int) -> Curve:
    curve: Curve = []
    start = time.perf_counter()

    def look(iteration: int, loss: float) -> None:
        curve.append((iteration, loss))
        if iteration and iteration % max(1, iterations // 5) < train.look_every:
            left = (time.perf_counter() - start) * (iterations / iteration - 1)
            print(f"{name} rates, iteration {iteration}/{iterations}: loss {loss:.4g}, {left:.0f} s left", flush=True)

    if train(inner_lr, outer_lr, iterations, look).diverged:
        curve.append((iterations, float("inf")))
    return curve


def _late(curve: Curve, iterations: int) -> float:
    """Mean loss in the last tenth."""
    return statistics.fmean(loss for iteration, loss in curve if iteration >= 0.9 * iterations)


def _write(
    folder: Path, settings: Settings, summary: dict[str, Any], curves: dict[str, Curve], suggestion: Suggestion
) -> None:
    name = settings.problem
    with replacing(folder / f"{name}.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    with replacing(folder / f"{name}_tuning.png") as path:
        suggestion.plot().savefig(path, dpi=120, format="png")
    figure, (axes,) = canvas(1)
    _draw(axes, summary, curves)
    axes.set_title(f"MAML on {name}: the tuner's rates against the papers'")
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, dpi=120, format="png")
    for each, loss in summary["loss_in_last_tenth"].items():
        alpha, beta = summary["rates"][each]
        print(f"{each} rates, α = {alpha:.3g}, β = {beta:.3g}: loss {loss:.4g} in the last tenth")
    print(f"Picture: {folder / name}.png   Numbers: {name}.json   Probing runs: {name}_tuning.png", flush=True)


def _draw(axes: Axes, summary: dict[str, Any], curves: dict[str, Curve]) -> None:
    for (name, curve), colour in zip(curves.items(), ("tab:red", "tab:blue"), strict=True):
        alpha, beta = summary["rates"][name]
        width = max(1, len(curve) // 100)
        pieces = [curve[start : start + width] for start in range(0, len(curve), width)]
        axes.plot(
            [statistics.fmean(iteration for iteration, _ in piece) for piece in pieces],
            [statistics.fmean(loss for _, loss in piece) for piece in pieces],
            color=colour,
            label=f"{name}: α = {alpha:.3g}, β = {beta:.3g}",
        )
    axes.set_yscale("log")
    axes.set(xlabel="iteration", ylabel="adapted query loss of new environments")
    axes.legend()


def _say(line: str) -> None:
    print(line, flush=True)


def main(args: Sequence[str] | None = None) -> None:
    """The command line of ``lightning-gp reproduce tuner``."""
    parser = argparse.ArgumentParser(
        "lightning-gp reproduce tuner",
        description="The tuner's learning rates against the papers', after the same number of iterations.",
    )
    parser.add_argument("problem", choices=list(HAND_PICKED), help="sinusoid (minutes) or omniglot (wants a GPU)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the iterations")
    parser.add_argument("--iterations", type=int, help=f"of both trainings (default: {ITERATIONS})")
    parser.add_argument("--steps", type=int, help=f"of each probing run (default: {STEPS})")
    parser.add_argument("--environments", type=int, help="per batch (default: 100 sinusoids, 32 of Omniglot)")
    parser.add_argument("--channels", type=int, default=64, help="of Conv4, on Omniglot (default: %(default)s)")
    parser.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and episodes (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/tuner"), help="folder (default: %(default)s)")
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # as the stated times are meant
    name = options.problem
    iterations = options.iterations or ITERATIONS[name] // (5 if options.quick else 1)
    settings = Settings(
        problem=name,
        iterations=iterations,
        steps=options.steps or STEPS[name],
        environments=options.environments or {"sinusoid": 100, "omniglot": 32}[name],
        channels=options.channels,
        seed=options.seed,
        device=options.device,
        root=options.root,
    )
    compare(settings, options.output)
