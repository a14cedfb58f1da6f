"""CUB-200-2011: 11,788 photographs of 200 kinds of birds.

[W11] C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie 2011, *The Caltech-UCSD Birds-200-2011 dataset*: the data.
[C19] W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. F. Wang, J.-B. Huang 2019, *A closer look at few-shot classification*: the
    split into 100/50/50 classes that is used most.
"""

from __future__ import annotations

from typing import Any

from lightning_gp.datamodules.images.benchmark import BenchmarkDataModule, shipped_list
from lightning_gp.datamodules.images.sources.image_source import FileSource, ImageSource, folder_source

SPLITS = ("chen2019", "easyfsl", "dn4")


class CUBDataModule(BenchmarkDataModule):
    """Few-shot episodes on CUB-200-2011 [W11]: whole images, not cut to the bounding boxes.

    Looked for are ``root/CUB_200_2011/images/<001.Black_footed_Albatross …>/*.jpg``, ``root/images/…`` and
    ``root/<001.Black_footed_Albatross …>``, then the archive ``root/CUB_200_2011.tgz``, of which
    ``root/CUB_200_2011`` is unpacked.

    Args:
        args: see :class:`~lightning_gp.datamodules.images.benchmark.BenchmarkDataModule`.
        split: ``"chen2019"`` (100/50/50 classes [C19]); ``"easyfsl"`` (140/30/30) and ``"dn4"`` (130/20/50) are those
            of the code bases of these names.
        kwargs: see ``BenchmarkDataModule``. ``download=True`` fetches the archive (1.1 GB) from data.caltech.edu; its
            checksum is verified.

    Raises:
        ValueError, FileNotFoundError: as ``BenchmarkDataModule``; ValueError if there is no such split.
    """

    cache_name = "cub"
    title = "CUB-200-2011"
    instructions = (
        "Use download=True, or get CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 and put it, or "
        "the folder CUB_200_2011 that it unpacks to, into root."
    )
    total_images = 11_788
    archive = "CUB_200_2011.tgz"
    folder = "CUB_200_2011"

    def __init__(self, *args: Any, split: str = "chen2019", **kwargs: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; use one of {', '.join(map(repr, SPLITS))}.")
        self.split = split
        super().__init__(*args, **kwargs)

    def official_classes(self) -> dict[str, list[str]]:
        """Of the chosen split."""
        return cub_classes(self.split)

    def remote(self) -> tuple[str, str]:
        """Caltech's archive of research data."""
        address = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
        return address, "97eceeb196236b17998738112f37df78"

    def locate(self) -> ImageSource | None:
        """The class folders."""
        names = [name for split in self.classes.values() for name in split]
        for folder in (self.root / self.folder / "images", self.root / "images", self.root):
            source: FileSource = folder_source(folder, 1, names)
            if source.tree:
                self.completeness(folder)(source.counts)
                return source
        return None


def cub_classes(split: str) -> dict[str, list[str]]:
    """Names such as ``001.Black_footed_Albatross`` of the training, validation and test classes."""
    lists = shipped_list("cub")
    return {
        part: [lists["names"][number - 1] for number in numbers] for part, numbers in lists["splits"][split].items()
    }
