"""The trainability map of IRMv1 on colored MNIST [T21, Fig. 6d].

    lightning-gp reproduce cmn --root data

One hidden layer of width 256, full batches, 500 iterations of gradient descent, 10 runs averaged, penalty weight α in
1e-2 … 900 and β in 1e-2 … 90, each stepping through 1 … 9 in every decade; no annealing, no rescaling of the loss, no
weight decay. The full map wants a GPU (``--device cuda``) or many machines (``--shard``). ``--quick`` has 1,000 images
per environment, one run and a coarse grid, and takes some ten minutes.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from lightning_gp.datamodules.colored_mnist import ColoredMNISTDataModule
from lightning_gp.experiments.maps import Finding, borders, computed, parser_of, write
from lightning_gp.modules.irm import IRMv1
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.trainability.grid import parse_rates
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.result import TrainabilityResult

PAPER = "the maximum β quickly decreases with increasing α"


def invariant(seed: int) -> IRMv1:
    """IRMv1 with the weights that torch's generator gives."""
    return IRMv1(ColoredMNISTMLP(hidden=256, layers=1), criterion=nn.BCEWithLogitsLoss())


@dataclass(frozen=True)
class ColoredMNIST:
    """The environments, as a function of the seed."""

    root: str
    examples: int | None = None

    def __call__(self, seed: int) -> ColoredMNISTDataModule:
        """Two environments whose colour agrees with the label with probability 0.9 and 0.8."""
        return ColoredMNISTDataModule(self.root, examples=self.examples, seed=seed)


def colored_mnist_map(root: str, quick: bool = False, seeds: int = 10, device: str = "cpu") -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    return TrainabilityMap(
        invariant,
        ColoredMNIST(root, 1000 if quick else None),
        parse_rates("1e-2:9e2:12" if quick else "1e-2:9e2"),
        parse_rates("1e-2:9e1:12" if quick else "1e-2:9e1"),
        iterations=500,
        seeds=range(1 if quick else seeds),
        device=device,
    )


def decay(result: TrainabilityResult) -> Finding:
    """How β_c falls with α: its border at the smallest and the largest α, and the slope between."""
    top, bottom = float(result.outer_lrs[-1]), float(result.outer_lrs[0])
    critical = np.clip(result.critical_outer_lrs("worse"), bottom, top)
    inside = (critical > bottom) & (critical < top)
    falling = bool((np.diff(critical) <= 1e-12).mean() >= 0.8 and critical[-1] < critical[0] / 10)
    slope = np.polyfit(np.log(result.inner_lrs[inside]), np.log(critical[inside]), 1)[0] if inside.sum() > 2 else np.nan
    zero = result.zero_critical_outer_lr("worse")
    found = (
        f"the largest β that lowers the loss is {zero:.3g} at α = 0, {critical[0]:.3g} at α = {result.inner_lrs[0]:.3g}"
        f" and {critical[-1]:.3g} at α = {result.inner_lrs[-1]:.3g}; it falls like α^{slope:.2f}"
    )
    return Finding(PAPER, found, falling)


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("cmn", "Trainability map of IRMv1 on colored MNIST; wants a GPU, or --quick.", "runs/cmn")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/raw (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="runs to average, unless --quick (default: %(default)s)")
    options = parser.parse_args(args)
    result = computed(colored_mnist_map(options.root, options.quick, options.seeds, options.device), options, "cmn")
    if result.complete:
        numbers = {"borders": borders(result), "borders_of_lower_loss": borders(result, "worse")}
        write("cmn", options, {"Colored MNIST, IRMv1": result}, [decay(result)], numbers)
