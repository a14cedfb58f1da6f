"""Stanford Cars: 16,185 photographs of 196 models of cars.

[K13] J. Krause, M. Stark, J. Deng, L. Fei-Fei 2013, *3D object representations for fine-grained categorization*: data.
[L19] W. Li, L. Wang, J. Xu, J. Huo, Y. Gao, J. Luo 2019, *Revisiting local descriptor based image-to-class measure for
    few-shot learning* (DN4): the split into 130/17/49 classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.images.benchmark import BenchmarkDataModule, shipped_list
from lightning_gp.datamodules.images.sources.class_tree import ImageFile, image_file
from lightning_gp.datamodules.images.sources.image_source import FileSource, ImageSource

_CLASSES = 196
_TOTAL = {"all": 16_185, "train": 8_144}
_TRAIN, _TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"


class StanfordCarsDataModule(BenchmarkDataModule):
    """Few-shot episodes on Stanford Cars [K13], whole images, with the 130/17/49 classes of [L19].

    In ``root`` or ``root/stanford_cars`` are looked for: the images, ``cars_train/00001.jpg`` … and
    ``cars_test/00001.jpg`` …; their labels, ``cars_train_annos.mat`` and ``cars_test_annos_withlabels.mat``, there or
    in ``devkit``. This is torchvision's layout. Or else ``car_ims/000001.jpg`` … with ``cars_annos.mat``.

    Args:
        args: see :class:`~lightning_gp.datamodules.images.benchmark.BenchmarkDataModule`.
        images: ``"all"``, or ``"train"`` for the 8,144 in ``cars_train``, whose labels are in the devkit itself.
        kwargs: see ``BenchmarkDataModule``. ``download=True`` is refused: the authors' site is gone.

    Raises:
        ValueError, FileNotFoundError: as ``BenchmarkDataModule``; ValueError if ``images`` is neither.
    """

    cache_name = "stanford-cars"
    title = "Stanford Cars"
    instructions = (
        "Its site is gone, so torchvision cannot download it either; https://github.com/pytorch/vision/issues/7545 "
        "says where copies are: the images at https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset, the "
        "devkit and cars_test_annos_withlabels.mat in that thread. Put the folders cars_train, cars_test and devkit, "
        "and that file, into root/stanford_cars."
    )

    def __init__(self, *args: Any, images: str = "all", **kwargs: Any) -> None:
        if images not in _TOTAL:
            raise ValueError(f"images={images!r} is unknown; use 'all' or 'train'.")
        self.which = images
        self.total_images = _TOTAL[images]
        super().__init__(*args, **kwargs)

    def official_classes(self) -> dict[str, list[str]]:
        """The numbers that the class names begin with."""
        numbers: dict[str, list[int]] = shipped_list("stanford_cars")
        return {split: [f"{number:03d}" for number in members] for split, members in numbers.items()}

    def locate(self) -> ImageSource | None:
        """The images that the label files name."""
        for folder in (self.root / "stanford_cars", self.root):
            if (folder / "cars_train").is_dir():
                halves = {"cars_train": _TRAIN, "cars_test": _TEST}
            elif (folder / "car_ims").is_dir():
                halves = {"car_ims": "cars_annos.mat"}
            else:
                continue
            names = class_names(folder)
            tree: dict[str, list[ImageFile]] = {name: [] for name in names}
            for images, labels in halves.items():
                if images != "cars_test" or self.which == "all":
                    for number, image in self._labelled(folder, images, labels):
                        tree[names[number - 1]].append(image)
            source = FileSource(tree, folder)
            self.completeness(folder, names)(source.counts)
            return source
        return None

    def class_splits(self, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The split, by the number that each class name begins with."""
        full = {name[:3]: name for name in classes}
        return {split: [full[number] for number in numbers] for split, numbers in self.classes.items()}

    def _labelled(self, folder: Path, images: str, labels: str) -> list[tuple[int, ImageFile]]:
        """Class number (from 1) and file of each image in the folder ``images``."""
        path = find_file(folder, labels)
        if path is None:
            hint = ', or use images="train"' if labels == _TEST else ""
            raise FileNotFoundError(f"{folder / labels} is missing{hint}. {self.instructions}")
        nested = folder / images / images  # as some archives unpack
        place = nested if nested.is_dir() else folder / images
        if not place.is_dir():
            raise FileNotFoundError(f'{place} is missing, or use images="train". {self.instructions}')
        with os.scandir(place) as entries:
            found = {entry.name: entry.stat() for entry in entries}
        rows = []
        try:
            for row in read_mat(path, "annotations"):
                if images == "car_ims" and self.which == "train" and int(row["test"]):
                    continue
                name = Path(str(row["relative_im_path" if images == "car_ims" else "fname"])).name
                rows.append((int(row["class"]), name))
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{path} is not the label file of Stanford Cars ({error}).") from error
        for number, name in rows:
            if name not in found or not 1 <= number <= _CLASSES:
                raise ValueError(
                    f"{self.title} in {folder} is incomplete: {path} names image {place / name} of class {number}, "
                    f"which is not there. Copy the complete data set there."
                )
        return [(number, image_file(place, name, found[name])) for number, name in rows]


def find_file(folder: Path, name: str) -> Path | None:
    """``name`` in ``folder`` or in its devkit."""
    places = (folder, folder / "devkit", folder / "car_devkit" / "devkit")
    return next((place / name for place in places if (place / name).is_file()), None)


def class_names(folder: Path) -> list[str]:
    """``001.AM General Hummer SUV 2000`` …, or the mere numbers if ``cars_meta.mat`` is not there."""
    numbers = [f"{number:03d}" for number in range(1, _CLASSES + 1)]
    path = find_file(folder, "cars_meta.mat")
    if path is None:
        return numbers
    names = read_mat(path, "class_names")
    if len(names) != _CLASSES:
        raise ValueError(f"{path} has {len(names)} class names, Stanford Cars has {_CLASSES}.")
    return [f"{number}.{name}" for number, name in zip(numbers, names, strict=True)]


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """An array of a MATLAB file.

    Raises:
        ValueError: naming the file, if it is broken or has no such array.
    """
    from scipy.io import loadmat

    try:
        return np.atleast_1d(loadmat(str(path), squeeze_me=True)[key])
    except Exception as error:  # scipy's reader raises whatever a damaged file leads to
        raise ValueError(
            f"{path} is damaged or has no {key!r} ({type(error).__name__}: {error}); get it again."
        ) from error
