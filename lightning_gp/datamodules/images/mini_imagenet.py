"""mini-ImageNet: 100 classes of ImageNet with 600 images each.

[V16] O. Vinyals et al. 2016, *Matching networks for one shot learning*: the idea and the name.
[R17] S. Ravi, H. Larochelle 2017, *Optimization as a model for few-shot learning*: the 64/16/20 classes and the 60,000
    images that are in use.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.images.benchmark import BenchmarkDataModule
from lightning_gp.datamodules.images.sources.class_tree import ImageFile, scan_folder
from lightning_gp.datamodules.images.sources.image_source import FileSource, ImageSource
from lightning_gp.datamodules.images.sources.imagenet import class_folders, ilsvrc_number
from lightning_gp.datamodules.images.sources.pickled_images import PickledArrays, split_files

logger = logging.getLogger(__name__)


class MiniImageNetDataModule(BenchmarkDataModule):
    """Few-shot episodes on mini-ImageNet, with the 64/16/20 classes of Ravi and Larochelle [R17].

    The images are looked for in ``root``, in this order:

    1. ``mini-imagenet-cache-{train,val,test}.pkl`` as they circulate, read without running what they contain.
    2. Class folders: ``{train,val,test}/<n01532829 …>/*``, or ``<n01532829 …>/*`` in ``root`` or ``root/images``.
    3. ``images/n0153282900000005.jpg`` …, all in one folder.
    4. The ILSVRC 2012 training images, ``train/<n01532829 …>/*.JPEG``, also below ``ILSVRC/Data/CLS-LOC``.

    Of classes with more than 600 images (ILSVRC has up to 1300), those in the lists ``root/{train,val,test}.csv``
    [R17] are taken. Their lines are ``n0153282900000005.jpg,n01532829``; the number 5 is the image's place, from 1,
    among those of its class in ILSVRC 2012, in order of their numbers there. Without lists the first 600 in that order
    are taken, with a warning: not the published choice, so get the lists to compare with published results.

    Arguments and errors: see :class:`~lightning_gp.datamodules.images.benchmark.BenchmarkDataModule`. ``download=True``
    is refused, for the images belong to ImageNet.
    """

    cache_name = "mini-imagenet"
    split_list = "mini_imagenet"
    title = "mini-ImageNet"
    instructions = (
        "Its images may only be had from ImageNet: register at https://image-net.org, get ILSVRC2012_img_train.tar "
        "(138 GB), unpack it and the archives in it to root/train/<n01532829 …>/*.JPEG, and put train.csv, val.csv and "
        "test.csv from https://github.com/twitter/meta-learning-lstm (folder data/miniImagenet) into root. If you "
        "have them already prepared, put mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl, or the folders train, "
        "val and test of class folders, into root."
    )
    images_per_class: int = 600

    def locate(self) -> ImageSource | None:
        """The pickles or else the image files."""
        pickles = split_files(self.root, "mini-imagenet-cache-{}.pkl")
        if pickles:
            return PickledArrays(pickles, self.classes, self.completeness(self.root))
        folders = class_folders(self.root, self.classes)
        if folders:
            tree = {
                name: scan_folder(folder.parent, 1, classes=[name]).get(name, []) for name, folder in folders.items()
            }
        else:
            tree = self._one_folder(self.root / "images")
        if not tree:
            return None
        source = FileSource(self._choose(tree), self.root)
        self.completeness(self.root)(source.counts)
        return source

    def _one_folder(self, folder: Path) -> dict[str, list[ImageFile]]:
        tree: dict[str, list[ImageFile]] = {}
        known = {name for names in self.classes.values() for name in names}
        for image in scan_folder(folder.parent, 1, classes=[folder.name]).get(folder.name, []):
            name = Path(image.member).name[:9]
            if name in known:
                tree.setdefault(name, []).append(image)
        return tree

    def _choose(self, tree: Mapping[str, list[ImageFile]]) -> dict[str, list[ImageFile]]:
        """The images of each class that are part of mini-ImageNet; there is no choice if they are no more than 600."""
        limit = self.images_per_class
        many = [name for name, images in tree.items() if len(images) > limit]
        lists = self._lists() if many else None
        if many and lists is None:
            logger.warning(
                f"{self.root} has more than {limit} images of {len(many)} classes and no train.csv, val.csv, test.csv: "
                f"the first {limit} of each are taken, which are not those of Ravi and Larochelle."
            )
        chosen = dict(tree)
        for name in many:
            by_number = sorted(tree[name], key=lambda image: ilsvrc_number(Path(image.member).name))
            chosen[name] = by_number[:limit] if lists is None else self._listed(by_number, lists[name])
        return chosen

    def _listed(self, by_number: Sequence[ImageFile], names: Sequence[str]) -> list[ImageFile]:
        """Those of a class's images that a list names, by their own names or else by their places."""
        images = {Path(image.member).name: image for image in by_number}
        if not any(name in images for name in names):
            images = {str(place): image for place, image in enumerate(by_number, 1)}
            names = [str(ilsvrc_number(name)) for name in names]
        missing = [name for name in names if name not in images]
        if missing:
            raise ValueError(
                f"{self.title} in {self.root} is incomplete: the lists name image {missing[0]!r}, but the folder of "
                f"{by_number[0]} has only {len(by_number)} images. Copy the complete data set there."
            )
        return [images[name] for name in names]

    def _lists(self) -> dict[str, list[str]] | None:
        """File names of each class in the CSV lists, or None if there are no lists."""
        paths = {split: self.root / f"{split}.csv" for split in SPLITS}
        if not all(path.is_file() for path in paths.values()):
            return None
        lists: dict[str, list[str]] = {name: [] for names in self.classes.values() for name in names}
        for split, path in paths.items():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row]
            for row in rows[1 if rows and "label" in rows[0] else 0 :]:
                if len(row) < 2 or row[1] not in self.classes[split]:
                    raise ValueError(
                        f"{path} has the line {','.join(row)!r}: it is not a list of the {split} split of Ravi and "
                        "Larochelle. Get it from https://github.com/twitter/meta-learning-lstm."
                    )
                lists[row[1]].append(row[0])
        return lists
