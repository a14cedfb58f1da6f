"""The tuner's learning rates against those that the papers picked by hand, after the same number of iterations.

[F17] C. Finn, P. Abbeel, S. Levine (2017), Model-agnostic meta-learning for fast adaptation of deep networks: α = 0.01
on sinusoids and 0.4 on Omniglot, 5-way 1-shot, with Adam of rate 0.001 outside.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective, section IX-A: the same problems with 100 and 32 environments.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F

from lightning_gp._lightning import LightningDataModule, pl
from lightning_gp.checks import choice, whole
from lightning_gp.datamodules.episodes.sinusoid import SinusoidDataModule
from lightning_gp.datamodules.images.omniglot import OmniglotDataModule
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.plots import canvas, require_matplotlib, save_figure
from lightning_gp.runs.folders import check_settings, write_json
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.stream import BatchStream
from lightning_gp.tuning.suggestion import Suggestion
from lightning_gp.tuning.tuner import LearningRateTuner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Problem = Literal["sinusoid", "omniglot"]
HAND_PICKED = {"sinusoid": (0.01, 0.001), "omniglot": (0.4, 0.001)}
ITERATIONS = {"sinusoid": 5000, "omniglot": 1000}
TRIALS = {"sinusoid": 200, "omniglot": 60}
ENVIRONMENTS = {"sinusoid": 100, "omniglot": 32}
Curve = list[tuple[int, float]]


def tuner(
    problem: Problem,
    quick: bool = False,
    iterations: int | None = None,
    trial_iterations: int | None = None,
    environments: int | None = None,
    channels: int = 64,
    root: str = "data",
    seed: int = 0,
    device: str = "cpu",
    output: Path = Path("runs/tuner"),
) -> dict[str, Any]:
    """Tunes, then trains with the suggestion and with the papers' rates from the same weights on the same episodes.

    These episodes are others than those of the tuner's trials, and new ones at each iteration, so that the training
    objective is that of unseen environments.

    Args:
        problem: sinusoid (minutes) or omniglot (wants a GPU).
        quick: a fifth of the iterations.
        iterations: of both trainings, at least 10; null for 5000 (sinusoid) or 1000 (omniglot).
        trial_iterations: of each of the tuner's trials; null for 200 or 60.
        environments: per batch; null for 100 or 32.
        channels: of Conv4, on Omniglot.
        root: folder of the Omniglot data.
        seed: of weights and episodes.
        device: where to compute.
        output: folder for <problem>.json, <problem>.png (curves) and <problem>_tuning.png.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if the problem is unknown, a number out of range, or the folder holds a result of other settings.
        FileNotFoundError: if there is no Omniglot.
    """
    choice(tuple(HAND_PICKED), problem=problem)
    if iterations is None:
        iterations = ITERATIONS[problem] // (5 if quick else 1)
    trial_iterations = TRIALS[problem] if trial_iterations is None else trial_iterations
    environments = ENVIRONMENTS[problem] if environments is None else environments
    whole(10, iterations=iterations)
    settings: dict[str, Any] = {"environments": environments, "channels": channels}
    whole(1, **settings)
    settings |= {"iterations": iterations, "trial_iterations": trial_iterations, "seed": seed, "device": device}
    check_settings(output / f"{problem}.json", settings)

    def data(seed: int) -> LightningDataModule:
        length = max(iterations, trial_iterations) + 1
        if problem == "sinusoid":
            return SinusoidDataModule(environments_per_batch=environments, iterations_per_epoch=length, seed=seed)
        return OmniglotDataModule(root, environments_per_batch=environments, iterations_per_epoch=length, seed=seed)

    require_matplotlib()
    pl.seed_everything(seed, verbose=False)
    inner_lr = HAND_PICKED[problem][0]
    if problem == "sinusoid":
        module = MAML(SinusoidMLP(), inner_lr=inner_lr, criterion=F.mse_loss)
    else:
        module = MAML(Conv4(5, channels, downsample="stride"), inner_lr=inner_lr)
    start = time.perf_counter()
    suggestion = LearningRateTuner(trial_iterations, seed=seed, progress=partial(print, flush=True)).tune(
        module, data(seed), device
    )
    tuning_seconds = time.perf_counter() - start
    print(f"\n{suggestion.report()}\n", flush=True)
    stream = BatchStream(data(seed + 1), device)
    train = CellTrainer(module, stream, "adam", seed=seed)
    assert suggestion.inner_lr is not None  # of the MAML family
    rates = {"suggested": (suggestion.inner_lr, suggestion.outer_lr), "papers'": HAND_PICKED[problem]}
    curves = {name: _curve(train, name, *each, iterations) for name, each in rates.items()}
    final = {name: _late(curve, iterations) for name, curve in curves.items()}
    summary = {
        "command": f"lightning-gp reproduce tuner {problem} --iterations {iterations} --trial-iterations "
        f"{trial_iterations} --environments {environments} --channels {channels} --seed {seed} "
        f"--device {device}",
        "settings": settings,
        "rates": rates,
        "loss_in_last_tenth": final,
        "at_least_as_good": final["suggested"] <= final["papers'"],
        "tuning": suggestion.as_dict(),
        "tuning_seconds": round(tuning_seconds),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    _write(output, problem, summary, curves, suggestion)
    return summary


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


def _write(folder: Path, name: str, summary: dict[str, Any], curves: dict[str, Curve], suggestion: Suggestion) -> None:
    write_json(folder / f"{name}.json", summary)
    (tuning,) = save_figure(suggestion.plot(), folder / f"{name}_tuning")
    figure, (axes,) = canvas()
    _draw(axes, summary, curves)
    axes.set_title(f"MAML on {name}: the tuner's rates against the papers'")
    (picture,) = save_figure(figure, folder / name)
    for each, loss in summary["loss_in_last_tenth"].items():
        alpha, beta = summary["rates"][each]
        print(f"{each} rates, α = {alpha:.3g}, β = {beta:.3g}: loss {loss:.4g} in the last tenth")
    print(f"Picture: {picture}   Numbers: {name}.json   Trials: {tuning.name}", flush=True)


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
