"""The first thing to run: MAML on sinusoids, with a plot of the network before and after adaptation.

The problem is that of C. Finn et al., "Model-agnostic meta-learning", 2017, section 5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_gp._lightning import pl
from lightning_gp.checks import whole
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.plots import canvas, save_figure
from lightning_gp.runs.command import command
from lightning_gp.runs.training import quiet_trainer


def main(words: Sequence[str]) -> None:
    """Runs the demo with the options that ``words`` spell."""
    command(demo, "lightning-gp demo", words, also={"steps": "inner_steps"})


def demo(
    iterations: int = 5000, inner_steps: int = 5, seed: int = 0, output: Path = Path("runs/demo")
) -> dict[str, float]:
    """Meta-trains a small network on sinusoids and plots how it adapts to new ones. Needs no download.

    Args:
        iterations: outer steps, in ten epochs; 5000 take a minute.
        inner_steps: at test time.
        seed: of weights and episodes.
        output: folder of the plot and the metrics.

    Returns:
        The test losses by name.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if one is too small.
    """
    whole(10, iterations=iterations)
    whole(1, inner_steps=inner_steps)
    print(
        f"Meta-training on sinusoids: {iterations} iterations of 100 environments with 10 points each, about a minute "
        "on one core.",
        flush=True,
    )
    torch.set_num_threads(1)  # the network is tiny: more threads only wait for each other
    pl.seed_everything(seed, verbose=False)
    module = MAML(
        SinusoidMLP(), inner_lr=0.01, inner_steps=1, eval_inner_steps=inner_steps, criterion=nn.functional.mse_loss
    )
    data = SinusoidDataModule(iterations_per_epoch=iterations // 10, val_episodes=200, test_episodes=1000, seed=seed)
    trainer = quiet_trainer(
        "cpu", max_epochs=10, enable_progress_bar=True, logger=pl.loggers.CSVLogger(str(output), name="", version="")
    )
    trainer.fit(module, data)
    results: dict[str, float] = trainer.test(module, data, verbose=False)[0]
    print("\nMean squared error on 1,000 new sinusoids, 95 % confidence interval:")
    for step in range(inner_steps + 1):
        loss, half_width = results[f"test/loss_step_{step}"], results[f"test/loss_step_{step}_ci95"]
        when = "before adaptation" if step == 0 else f"after {step} inner step{'s' if step > 1 else ''}"
        print(f"  {when:<22}{loss:8.4f} ± {half_width:.4f}")
    picture = plot(module, data, output / "adaptation.png")
    print(f"\nPlot: {picture}   Metrics: {output / 'metrics.csv'}")
    return results


def plot(module: MAML, data: SinusoidDataModule, path: Path, shown: int = 3) -> Path:
    """Draws some test environments: the truth, the support points, the network before and after adaptation."""
    environments = data.episodes("test").__getitems__(range(shown))
    low, high = data.hparams["x_range"]
    grid = torch.linspace(low, high, 200).reshape(1, -1, 1).expand(shown, -1, -1)
    predictions = _predictions(module, environments, grid)
    figure, panels = canvas(shown, width=4, height=3.4, sharey=True)
    for index, axis in enumerate(panels):
        support, query = environments.support, environments.query or environments.support
        axis.scatter(query[0][index], query[1][index], s=14, color="0.7", label="query points")
        axis.scatter(support[0][index], support[1][index], s=28, color="black", zorder=3, label="support points")
        for step, colour in ((0, "tab:blue"), (1, "tab:orange"), (len(predictions) - 1, "tab:red")):
            label = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            axis.plot(grid[index], predictions[step][index], color=colour, label=label)
        axis.set(title=f"new environment {index + 1}", xlabel="x")
    axis.legend(fontsize=8, loc="lower right")
    figure.suptitle("One initialisation, adapted to new sinusoids from 10 points")
    (picture,) = save_figure(figure, path)
    return picture


def _predictions(module: MAML, environments: Environments, grid: Tensor) -> list[Tensor]:
    trajectory = module.adaptation(
        module.loss, module.network_parameters(), environments, steps=module.eval_inner_steps, create_graph=False
    )
    with torch.no_grad():
        return [over_environments(module.predict, theta, trajectory.shared, grid) for theta in trajectory.parameters]
