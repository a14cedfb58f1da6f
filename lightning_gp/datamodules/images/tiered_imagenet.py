"""tieredImageNet: 608 classes of ImageNet, split so that train and test classes are not alike.

[R18] M. Ren, E. Triantafillou, S. Ravi, J. Snell, K. Swersky, J. Tenenbaum, H. Larochelle, R. Zemel 2018,
    *Meta-learning for semi-supervised few-shot classification*: 20, 6 and 8 branches of the WordNet tree with
    351, 97 and 160 classes and 779,165 images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.images.benchmark import BenchmarkDataModule
from lightning_gp.datamodules.images.sources.class_tree import scan_folder
from lightning_gp.datamodules.images.sources.image_source import Check, FileSource, ImageSource
from lightning_gp.datamodules.images.sources.imagenet import class_folders
from lightning_gp.datamodules.images.sources.pickled_images import PickledPNGs, split_files


class TieredImageNetDataModule(BenchmarkDataModule):
    """Few-shot episodes on tieredImageNet, with its authors' 351/97/160 classes [R18].

    The images are looked for in ``root``, in this order:

    1. ``{train,val,test}_images_png.pkl`` and ``{train,val,test}_labels.pkl`` as they circulate, also in
       ``root/tiered-imagenet``; read without running what they contain. Colours come out as red, green, blue (the
       authors' code, which decodes with OpenCV, trains on blue, green, red).
    2. Class folders: ``{train,val,test}/<n01530575 …>/*``, or ``<n01530575 …>/*`` in ``root`` or ``root/images``.
    3. The ILSVRC 2012 training images, ``train/<n01530575 …>/*.JPEG``, also below ``ILSVRC/Data/CLS-LOC``: all images
       of these classes.

    Arguments and errors: see :class:`~lightning_gp.datamodules.images.benchmark.BenchmarkDataModule`. ``download=True``
    is refused, for the images belong to ImageNet.
    """

    cache_name = "tiered-imagenet"
    split_list = "tiered_imagenet"
    title = "tieredImageNet"
    instructions = (
        "Its images may only be had from ImageNet: register at https://image-net.org, get ILSVRC2012_img_train.tar "
        "(138 GB), and unpack it and the archives in it to root/train/<n01530575 …>/*.JPEG. If you have them already "
        "prepared, put train_images_png.pkl, train_labels.pkl and those of val and test (described at "
        "https://github.com/renmengye/few-shot-ssl-public), or the folders train, val and test of class folders, into "
        "root."
    )
    total_images = 779_165

    def locate(self) -> ImageSource | None:
        """The pickles or else the image files."""
        for folder in (self.root, self.root / "tiered-imagenet"):
            pickles = split_files(folder, "{}_images_png.pkl", "{}_labels.pkl")
            if pickles:
                return PickledPNGs(pickles, self.classes, self.completeness(folder, names=()))
        folders = class_folders(self.root, self.classes)
        return ClassFolders(folders, self.root, self.completeness(self.root)) if folders else None

    def class_splits(self, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The official split; of the pickles, whose classes have no WordNet ids, that of the files."""
        if not any("/" in name for name in classes):
            return self.classes
        return {split: [name for name in classes if name.startswith(f"{split}/")] for split in SPLITS}


class ClassFolders(FileSource):
    """Class folders so large that their files are listed only if there is no cache.

    Args:
        folders: class name → folder.
        origin: see :class:`ImageSource`.
        check: of the number of images per class.
    """

    def __init__(self, folders: Mapping[str, Path], origin: Path, check: Check) -> None:
        super().__init__({}, origin)
        self.folders, self.check = dict(sorted(folders.items())), check

    @property
    def counts(self) -> Mapping[str, int]:
        """See :class:`ImageSource`."""
        if not self.tree:
            tree = {
                name: scan_folder(folder.parent, 1, classes=[name]).get(name, [])
                for name, folder in self.folders.items()
            }
            self.check({name: len(files) for name, files in tree.items()})
            self.tree.update(tree)
        return super().counts

    def stamp(self) -> str:
        """Hash of paths and times of the folders: files that come, go or change their names change it."""
        lines = (f"{name} {folder} {folder.stat().st_mtime_ns}" for name, folder in self.folders.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
