"""The first thing to run: MAML on sinusoids, with a plot of the network before and after adaptation.

The problem is that of C. Finn et al., "Model-agnostic meta-learning", 2017, section 5.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp._lightning import pl
from lightning_gp.datamodules.sinusoid import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.files import replacing
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.sinusoid import SinusoidMLP


def main(args: Sequence[str] | None = None) -> None:
    """Trains, tests and plots; ``args`` as ``lightning-gp demo --help`` says."""
    parser = argparse.ArgumentParser(
        "lightning-gp demo",
        description="Meta-train a small network on sinusoids and plot how it adapts to new ones. Needs no download.",
    )
    parser.add_argument("--iterations", type=int, default=5000, help="outer steps (default: %(default)s, a minute)")
    parser.add_argument("--steps", type=int, default=5, help="inner steps at test time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and episodes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    options = parser.parse_args(args)
    if options.iterations < 10:
        parser.error(f"--iterations {options.iterations} is too few; use at least 10.")
    print(
        f"Meta-training on sinusoids: {options.iterations} steps of 100 environments with 10 points each, "
        "about a minute on one core.",
        flush=True,
    )
    run(options.iterations, options.steps, options.seed, options.output)


def run(iterations: int, steps: int, seed: int, output: Path) -> dict[str, float]:
    """The demo proper.

    Args:
        iterations: outer steps, in ten epochs.
        steps: inner steps at test time.
        seed: of weights and episodes.
        output: folder for the plot and the metrics.

    Returns:
        The test losses by name.
    """
    torch.set_num_threads(1)  # the network is tiny: more threads only wait for each other
    pl.seed_everything(seed, verbose=False)
    module = MAML(SinusoidMLP(), inner_lr=0.01, inner_steps=1, eval_inner_steps=steps, criterion=nn.functional.mse_loss)
    data = SinusoidDataModule(iterations_per_epoch=iterations // 10, val_episodes=200, test_episodes=1000, seed=seed)
    trainer: Any = pl.Trainer(
        max_epochs=10,
        accelerator="cpu",
        devices=1,
        logger=pl.loggers.CSVLogger(str(output), name="", version=""),
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    results: dict[str, float] = trainer.test(module, data, verbose=False)[0]
    print("\nMean squared error on 1,000 new sinusoids, 95 % confidence interval:")
    for step in range(steps + 1):
        loss, half_width = results[f"test/loss_step_{step}"], results[f"test/loss_step_{step}_ci95"]
        when = "before adaptation" if step == 0 else f"after {step} inner step{'s' if step > 1 else ''}"
        print(f"  {when:<22}{loss:8.4f} ± {half_width:.4f}")
    plot(module, data, output / "adaptation.png")
    print(f"\nPlot: {output / 'adaptation.png'}   Metrics: {output / 'metrics.csv'}")
    return results


def plot(module: MAML, data: SinusoidDataModule, path: Path, shown: int = 3) -> None:
    """Draws some test environments: the truth, the support points, the network before and after adaptation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    environments = data.episodes("test").__getitems__(range(shown))
    low, high = data.hparams["x_range"]
    grid = torch.linspace(low, high, 200).reshape(1, -1, 1).expand(shown, -1, -1)
    predictions = _predictions(module, environments, grid)
    figure = Figure(figsize=(4 * shown, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for index, axis in enumerate(figure.subplots(1, shown, sharey=True)):
        support, query = environments.support, environments.query or environments.support
        axis.scatter(query[0][index], query[1][index], s=14, color="0.7", label="query points")
        axis.scatter(support[0][index], support[1][index], s=28, color="black", zorder=3, label="support points")
        for step, colour in ((0, "tab:blue"), (1, "tab:orange"), (len(predictions) - 1, "tab:red")):
            label = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            axis.plot(grid[index], predictions[step][index], color=colour, label=label)
        axis.set(title=f"new environment {index + 1}", xlabel="x")
    axis.legend(fontsize=8, loc="lower right")
    figure.suptitle("One initialisation, adapted to new sinusoids from 10 points")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _predictions(module: MAML, environments: Environments, grid: Tensor) -> list[Tensor]:
    trajectory = module.adaptation(
        module.loss, module.network_parameters(), environments, steps=module.eval_inner_steps, create_graph=False
    )
    with torch.no_grad():
        return [over_environments(module.predict, theta, trajectory.shared, grid) for theta in trajectory.parameters]
