"""The trainability map of Omniglot classification with MAML [T21, Fig. 6b; T19, Fig. 4b].

    lightning-gp reproduce omn --root data

5-way 1-shot, 15 queries, Conv4 with 64 channels, 32 environments, 1 inner step, SGD inside and outside; the loss after
100 iterations for α in 1e-3 … 9 and β in 1e-1 … 90, each stepping through 1 … 9 in every decade. The full map wants a
GPU (``--device cuda``) or many machines (``--shard``). ``--quick`` has 8 channels, 4 environments, 5 queries and a
coarse grid, and takes minutes.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.experiments.maps import one_map, parser_of
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.trainability.grid import parse_rates
from lightning_gp.trainability.map import TrainabilityMap

PAPER = "the maximum β is larger at large α than at α = 0"


@dataclass(frozen=True)
class Omniglot:
    """The module, as a function of the seed."""

    channels: int = 64

    def __call__(self, seed: int) -> MAML:
        """MAML with the weights that torch's generator gives."""
        return MAML(Conv4(5, self.channels))


@dataclass(frozen=True)
class OmniglotData:
    """The episodes, as a function of the seed."""

    root: str
    environments: int = 32
    queries: int = 15

    def __call__(self, seed: int) -> OmniglotDataModule:
        """5-way 1-shot episodes."""
        return OmniglotDataModule(
            self.root, ways=5, shots=1, queries=self.queries, environments_per_batch=self.environments, seed=seed
        )


def omniglot_map(root: str, quick: bool = False, optimizer: str = "sgd", device: str = "cpu") -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    return TrainabilityMap(
        Omniglot(8 if quick else 64),
        OmniglotData(root, 4, 5) if quick else OmniglotData(root),
        parse_rates("1e-3:9e0:12" if quick else "1e-3:9e0"),
        parse_rates("1e-1:9e1:10" if quick else "1e-1:9e1"),
        iterations=100,
        optimizer=optimizer,  # type: ignore[arg-type]
        device=device,
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("omn", "Trainability map of Omniglot classification; wants a GPU, or --quick.", "runs/omn")
    parser.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    options = parser.parse_args(args)
    trainability = omniglot_map(options.root, options.quick, device=options.device)
    one_map("omn", options, trainability, "Omniglot, MAML, SGD outside", PAPER)
