"""The trainability map of mini-ImageNet classification with MAML [T21, Fig. 6c].

    lightning-gp reproduce min --root data/mini-imagenet

5-way 1-shot, 15 queries, Conv4 with 32 channels, 4 environments, 1 inner step, SGD inside and outside; the loss after
10,000 iterations for α in 1e-4 … 9e-1 and β in 1e-2 … 9, each stepping through 1 … 9 in every decade. It wants a GPU
(``--device cuda``) or many machines (``--shard``). ``--quick`` has 8 channels, 100 iterations and a coarse grid.
``--class-folders`` takes any images in ``root/{train,val,test}/<class>/``.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gp.datamodules.class_folder import ClassFolderDataModule
from lightning_gp.datamodules.image_classes import ImageClassDataModule
from lightning_gp.datamodules.mini_imagenet import MiniImageNetDataModule
from lightning_gp.experiments.maps import one_map, parser_of
from lightning_gp.experiments.maps_omn import PAPER
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.trainability.grid import parse_rates
from lightning_gp.trainability.map import TrainabilityMap


@dataclass(frozen=True)
class MiniImageNet:
    """The module, as a function of the seed."""

    channels: int = 32
    image_size: int = 84

    def __call__(self, seed: int) -> MAML:
        """MAML with the weights that torch's generator gives."""
        return MAML(Conv4(5, self.channels, in_channels=3, image_size=self.image_size))


@dataclass(frozen=True)
class MiniImageNetData:
    """The episodes, as a function of the seed."""

    root: str
    class_folders: bool = False
    image_size: int = 84

    def __call__(self, seed: int) -> ImageClassDataModule:
        """5-way 1-shot episodes."""
        kind = ClassFolderDataModule if self.class_folders else MiniImageNetDataModule
        return kind(self.root, ways=5, shots=1, image_size=self.image_size, seed=seed)


def mini_imagenet_map(
    root: str, quick: bool = False, class_folders: bool = False, image_size: int = 84, device: str = "cpu"
) -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    return TrainabilityMap(
        MiniImageNet(8 if quick else 32, image_size),
        MiniImageNetData(root, class_folders, image_size),
        parse_rates("1e-4:9e-1:12" if quick else "1e-4:9e-1"),
        parse_rates("1e-2:9e0:10" if quick else "1e-2:9e0"),
        iterations=100 if quick else 10_000,
        device=device,
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("min", "Trainability map of mini-ImageNet classification; wants a GPU.", "runs/min")
    parser.add_argument("--root", default="data", help="folder of the images (default: %(default)s)")
    parser.add_argument("--class-folders", action="store_true", help="any images in class folders")
    parser.add_argument("--image-size", type=int, default=84, help="side in pixels (default: %(default)s)")
    options = parser.parse_args(args)
    trainability = mini_imagenet_map(
        options.root, options.quick, options.class_folders, options.image_size, options.device
    )
    one_map("min", options, trainability, "mini-ImageNet, MAML, SGD outside", PAPER)
