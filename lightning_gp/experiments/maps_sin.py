"""The trainability map of sinusoid regression with MAML [T21, Fig. 6a; T19, Fig. 4a].

    lightning-gp reproduce sin

MLP 40-40, 10 points, 100 environments, 1 inner step, SGD inside and outside; the loss after 500 iterations for
α in 1e-4 … 9e-1 and β in 1e-2 … 9, each stepping through 1 … 9 in every decade. ``--compile`` compiles the step.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional as F

from lightning_gp.datamodules.sinusoid import SinusoidDataModule
from lightning_gp.experiments.maps import one_map, parser_of
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.trainability.grid import parse_rates
from lightning_gp.trainability.map import TrainabilityMap

PAPER = "if α is close to the value above which the losses diverge, a larger β can be used than at α = 0"


@dataclass(frozen=True)
class Sinusoid:
    """The module, as a function of the seed."""

    compile: bool = False

    def __call__(self, seed: int) -> MAML:
        """MAML with the weights that torch's generator gives."""
        return MAML(SinusoidMLP(), criterion=F.mse_loss, compile=self.compile)


@dataclass(frozen=True)
class SinusoidData:
    """The episodes, as a function of the seed."""

    environments: int = 100

    def __call__(self, seed: int) -> SinusoidDataModule:
        """Sinusoids with 10 support and 10 query points."""
        return SinusoidDataModule(environments_per_batch=self.environments, seed=seed)


def sinusoid_map(
    quick: bool = False, optimizer: str = "sgd", compile: bool = False, device: str = "cpu"
) -> TrainabilityMap:
    """The map of the paper; ``quick`` has every third rate or so, and 200 iterations."""
    return TrainabilityMap(
        Sinusoid(compile),
        SinusoidData(),
        parse_rates("1e-4:9e-1:12" if quick else "1e-4:9e-1"),
        parse_rates("1e-2:9e0:10" if quick else "1e-2:9e0"),
        iterations=200 if quick else 500,
        optimizer=optimizer,  # type: ignore[arg-type]
        device=device,
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("sin", "Trainability map of sinusoid regression, under half an hour on one core.", "runs/sin")
    parser.add_argument("--compile", action="store_true", help="compile the step: twice as fast, a slow start")
    options = parser.parse_args(args)
    trainability = sinusoid_map(options.quick, compile=options.compile, device=options.device)
    one_map("sin", options, trainability, "Sinusoid, MAML, SGD outside", PAPER)
