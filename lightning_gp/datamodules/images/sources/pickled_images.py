"""The pickle files in which mini-ImageNet and tieredImageNet circulate, as sources of images.

They are read as data alone (:mod:`lightning_gp.datamodules.images.sources.safe_pickle`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.images.sources.image_source import Check, ImageSource, file_stamp
from lightning_gp.datamodules.images.sources.safe_pickle import load_plain


def split_files(folder: Path, *patterns: str) -> dict[str, list[Path]]:
    """The files of each split, one per pattern (``{}`` stands for the split); empty if none of them is there.

    Raises:
        FileNotFoundError: naming the first that is missing if others are there.
    """
    files = {split: [folder / pattern.format(split) for pattern in patterns] for split in SPLITS}
    every = [path for paths in files.values() for path in paths]
    missing = [path for path in every if not path.is_file()]
    if len(missing) == len(every):
        return {}
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing beside others of its kind. Put it there, or remove {', '.join(patterns)}."
        )
    return files


class PickledSplits(ImageSource):
    """Base: files that hold the images of a split, and which rows of them belong to which class.

    Args:
        files: of each split.
        classes: names of the classes that each split must have.
        check: of the number of images per class.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]], classes: Mapping[str, Sequence[str]], check: Check) -> None:
        self.files, self.classes, self.check = files, classes, check
        self.origin = str(files["train"][0].parent)
        self._images: dict[str, Sequence[Any]] = {}
        self._rows: dict[str, tuple[str, NDArray[np.int64]]] = {}

    @abstractmethod
    def load(self, split: str) -> tuple[Sequence[Any], dict[str, NDArray[np.int64]]]:
        """The images of a split, and class name → rows of its images."""

    @property
    def counts(self) -> Mapping[str, int]:
        """See :class:`ImageSource`."""
        if not self._rows:
            images, every = {}, {}
            for split in self.files:
                images[split], rows = self.load(split)
                check_rows(self.files[split][-1], rows, len(images[split]))
                every.update({name: (split, numbers) for name, numbers in rows.items()})
            self.check({name: len(numbers) for name, (_, numbers) in every.items()})
            self._images, self._rows = images, every
        return {name: len(self._rows[name][1]) for name in sorted(self._rows)}

    def stamp(self) -> str:
        """Names, sizes and times of the files."""
        return file_stamp(*(path for paths in self.files.values() for path in paths))

    def image(self, name: str, index: int) -> NDArray[Any]:
        """What the file has for an image."""
        if not self._rows:
            _ = self.counts
        split, rows = self._rows[name]
        return np.asarray(self._images[split][rows[index]])

    def describe(self, name: str, index: int) -> str:
        """File and row."""
        split, rows = self._rows[name]
        return f"{self.files[split][0]} (image {rows[index]})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": {}, "_rows": {}}  # another process reads the files anew


class PickledArrays(PickledSplits):
    """``mini-imagenet-cache-*.pkl``: dicts of ``image_data``, uint8 (images, height, width, 3), and ``class_dict``.

    ``class_dict`` maps each class to the rows of its images. Keys may be text or bytes.
    """

    def load(self, split: str) -> tuple[Sequence[Any], dict[str, NDArray[np.int64]]]:
        """See :class:`PickledSplits`."""
        path = self.files[split][0]
        content = with_text_keys(path, load_plain(path), "image_data", "class_dict")
        images, rows = content["image_data"], content["class_dict"]
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[-1:] != (3,):
            raise ValueError(f"{path} is of an unknown kind: its 'image_data' is no uint8 (images, height, width, 3).")
        rows = {
            name: np.asarray(numbers, dtype=np.int64).reshape(-1)
            for name, numbers in with_text_keys(path, rows).items()
        }
        strange = sorted(set(rows) ^ set(self.classes[split]))
        if strange:
            raise ValueError(
                f"{path} does not hold the {split} classes of the official split: {len(strange)} are missing or too "
                f"many, among them {strange[0]!r}."
            )
        return images.reshape(-1, *images.shape[-3:]), rows  # type: ignore[return-value]  # arrays are sequences enough

    def read(self, name: str, index: int) -> NDArray[np.uint8]:
        """Its pixels."""
        return self.image(name, index)


class PickledPNGs(PickledSplits):
    """``*_images_png.pkl``, lists of PNG files as uint8 arrays, and ``*_labels.pkl``, dicts with ``label_specific``.

    The labels have no WordNet ids, so a class is called ``train/000 <the name in label_specific_str>``.

    The authors' code decodes the images with OpenCV, which returns blue first; the PNG files themselves are in the
    usual order, and come out as red, green, blue.
    """

    def load(self, split: str) -> tuple[Sequence[Any], dict[str, NDArray[np.int64]]]:
        """See :class:`PickledSplits`."""
        images_path, labels_path = self.files[split]
        content = with_text_keys(labels_path, load_plain(labels_path), "label_specific", "label_specific_str")
        labels = np.asarray(content["label_specific"], dtype=np.int64).reshape(-1)
        names = content["label_specific_str"]
        found = np.unique(labels).tolist()
        if found != list(range(len(self.classes[split]))) or len(names) != len(found):
            raise ValueError(
                f"{labels_path} has {len(found)} classes, the {split} split should have {len(self.classes[split])}."
            )
        images = load_plain(images_path)
        if not isinstance(images, list) or len(images) != len(labels):
            raise ValueError(f"{images_path} is no list of as many images as {labels_path.name} has labels.")
        order = np.argsort(labels, kind="stable")
        rows = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        return images, {f"{split}/{i:03d} {text(name)}": rows[i] for i, name in enumerate(names)}

    def read(self, name: str, index: int) -> bytes:
        """The PNG file."""
        return self.image(name, index).tobytes()


def check_rows(path: Path, rows: Mapping[str, NDArray[np.int64]], images: int) -> None:
    """Refuses rows that do not exist or belong to two images.

    Raises:
        ValueError: naming the file.
    """
    every = np.sort(np.concatenate([*rows.values(), np.empty(0, np.int64)]))
    if len(every) and (every[0] < 0 or every[-1] >= images or (every[1:] == every[:-1]).any()):
        raise ValueError(f"{path} is damaged: it names an image twice, or one that is not there; fetch it again.")


def with_text_keys(path: Path, content: Any, *keys: str) -> dict[str, Any]:
    """A dict with ``keys``; Python 2's bytes as keys become text.

    Raises:
        ValueError: naming the file, if it is no dict or a key is missing.
    """
    named = {text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    missing = [key for key in keys if key not in named]
    if missing or not isinstance(content, dict):
        raise ValueError(f"{path} is of an unknown kind: expected a dict{f' with {missing[0]!r}' if missing else ''}.")
    return named


def text(name: Any) -> str:
    """Names as text, whichever Python wrote them."""
    return name.decode("latin1") if isinstance(name, bytes) else str(name)
