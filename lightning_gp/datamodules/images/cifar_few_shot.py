"""CIFAR-FS and FC100: few-shot splits of CIFAR-100.

[K09] A. Krizhevsky 2009, *Learning multiple layers of features from tiny images*: the 100 classes of 600 images.
[B19] L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi 2019, *Meta-learning with differentiable closed-form solvers*:
    CIFAR-FS, 64/16/20 classes at random.
[O18] B. Oreshkin, P. Rodríguez López, A. Lacoste 2018, *TADAM: task dependent adaptive metric for improved few-shot
    learning*: FC100, 60/20/20 classes that share no superclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.images.benchmark import BenchmarkDataModule
from lightning_gp.datamodules.images.sources.image_source import Check, ImageSource, file_stamp
from lightning_gp.datamodules.images.sources.pickled_images import text, with_text_keys
from lightning_gp.datamodules.images.sources.safe_pickle import load_plain

_FOLDER = "cifar-100-python"


class CIFARFSDataModule(BenchmarkDataModule):
    """Few-shot episodes on CIFAR-FS: CIFAR-100, its train and test images together, in 64/16/20 classes [B19].

    Looked for are ``root/cifar-100-python/{train,test,meta}``, as torchvision keeps them, and the archive
    ``root/cifar-100-python.tar.gz``, which is unpacked.

    Args:
        args: see :class:`~lightning_gp.datamodules.images.benchmark.BenchmarkDataModule`.
        image_size: side in pixels; the images have 32.
        kwargs: see ``BenchmarkDataModule``. ``download=True`` fetches the archive (170 MB) from where torchvision gets
            it; its checksum is verified.

    Raises:
        ValueError, FileNotFoundError: as ``BenchmarkDataModule``.
    """

    cache_name = "cifar-100"
    title = "CIFAR-100"
    instructions = (
        "Use download=True, or get cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and put "
        "it, or the folder cifar-100-python that it unpacks to, into root."
    )
    images_per_class = 600
    archive = "cifar-100-python.tar.gz"
    folder = _FOLDER
    split_list = "cifar_fs"

    def __init__(self, *args: Any, image_size: int = 32, **kwargs: Any) -> None:
        super().__init__(*args, image_size=image_size, **kwargs)  # type: ignore[misc]  # it is no positional one here

    def remote(self) -> tuple[str, str]:
        """As in torchvision."""
        from torchvision.datasets import CIFAR100

        return CIFAR100.url, CIFAR100.tgz_md5

    def locate(self) -> ImageSource | None:
        """The images in torchvision's folder."""
        folder = self.root / self.folder
        return CIFAR100Images(folder, self.completeness(folder)) if folder.is_dir() else None


class FC100DataModule(CIFARFSDataModule):
    """Few-shot episodes on FC100: CIFAR-100 in 60/20/20 classes that share no superclass [O18].

    Files, arguments and errors are those of :class:`CIFARFSDataModule`, and so is the cache.
    """

    split_list = "fc100"


class CIFAR100Images(ImageSource):
    """The files ``train``, ``test`` and ``meta`` of CIFAR-100, read without running what they contain.

    Args:
        folder: that has them.
        check: of the number of images per class.
    """

    def __init__(self, folder: Path, check: Check) -> None:
        self.folder, self.check, self.origin = folder, check, str(folder)
        self.paths = [folder / name for name in ("train", "test", "meta")]
        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; remove {folder} and use download=True.")
        self._images: list[NDArray[np.uint8]] = []
        self._places: dict[str, list[tuple[int, int]]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """See :class:`ImageSource`."""
        if not self._places:
            meta = with_text_keys(self.paths[2], load_plain(self.paths[2]), "fine_label_names")
            names = [text(name) for name in meta["fine_label_names"]]
            places: dict[str, list[tuple[int, int]]] = {name: [] for name in sorted(names)}
            images = []
            for part, path in enumerate(self.paths[:2]):
                content = with_text_keys(path, load_plain(path), "data", "fine_labels")
                pixels, labels = content["data"], content["fine_labels"]
                if (
                    not isinstance(pixels, np.ndarray)
                    or pixels.shape != (len(labels), 3072)
                    or pixels.dtype != np.uint8
                ):
                    raise ValueError(f"{path} is not a file of CIFAR-100: its 'data' is no uint8 (images, 3072).")
                strange = [label for label in labels if label not in range(len(names))]
                if strange:
                    raise ValueError(f"{path} is not a file of CIFAR-100: it has the label {strange[0]}.")
                images.append(pixels.reshape(-1, 3, 32, 32))
                for row, label in enumerate(labels):
                    places[names[label]].append((part, row))
            self.check({name: len(rows) for name, rows in places.items()})
            self._images, self._places = images, places
        return {name: len(rows) for name, rows in self._places.items()}

    def stamp(self) -> str:
        """Names, sizes and times of the files."""
        return file_stamp(*self.paths)

    def read(self, name: str, index: int) -> NDArray[np.uint8]:
        """(32, 32, 3)."""
        if not self._places:
            _ = self.counts
        part, row = self._places[name][index]
        return np.ascontiguousarray(self._images[part][row].transpose(1, 2, 0))

    def describe(self, name: str, index: int) -> str:
        """File and row."""
        part, row = self._places[name][index]
        return f"{self.paths[part]} (image {row})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": [], "_places": {}}  # another process maps the files anew
