"""The images of a labelled map-style dataset as a source: its classes, its pixels, and what identifies it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_gp.datamodules.episodes.labels import whole_labels
from lightning_gp.datamodules.images.sources.eight_bit import NotEightBitError, eight_bit
from lightning_gp.datamodules.images.sources.image_source import ImageSource

_PROBES = 16  # images whose pixels enter the stamp


class DatasetSource(ImageSource):
    """A labelled dataset's images by class.

    Args:
        parts: datasets by the prefix of their classes' names; "" for none.
        class_names: of the labels; None for the datasets' own.
        exif: whether the orientation that a camera noted is applied.
    """

    def __init__(self, parts: Mapping[str, Any], class_names: Sequence[str] | None, exif: bool = True) -> None:
        for dataset in parts.values():
            if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or len(dataset) == 0:
                raise TypeError(
                    f"dataset is of type {type(dataset).__name__}; it must be a map-style dataset, with a length above "
                    "0 and items (image, label)."
                )
        self.parts = dict(parts)
        self.class_names = class_names
        self.origin = ", ".join(type(dataset).__name__ for dataset in parts.values())
        self.exif = exif
        self._lock = threading.Lock()
        self._read: dict[str, list[tuple[int, NDArray[np.uint8]]]] = {}
        self._rows: dict[str, list[tuple[str, int]]] | None = None

    @cached_property
    def grey(self) -> bool:
        """Whether the first image is; the others must be alike."""
        return self.pixels(next(iter(self.parts)), 0).ndim == 2

    def pixels(self, part: str, number: int, exif: bool = True) -> NDArray[np.uint8]:
        """Item ``number`` of a part as it is.

        Raises:
            ValueError: naming the item, if it is broken or would lose something as 8-bit.
        """
        try:
            return np.asarray(eight_bit(_item(self.parts[part], number)[0], exif))
        except NotEightBitError as error:
            raise ValueError(f"{self._where(part, number)} cannot be used: {error}.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{self._where(part, number)} is no readable image: {error}.") from error

    def _where(self, part: str, number: int) -> str:
        dataset = self.parts[part]
        samples = getattr(dataset, "samples", None)
        file = (
            f" ({samples[number][0]})" if isinstance(samples, Sequence) and isinstance(samples[number], tuple) else ""
        )
        return f"{type(dataset).__name__}[{number}]{file}"

    def class_name(self, label: str | int) -> str:
        """The class that goes by this label; names stay as they are."""
        if isinstance(label, str):
            return label
        names = self._names(next(iter(self.parts.values())))
        return names[label] if names is not None and 0 <= label < len(names) else str(label)

    def _names(self, dataset: Any) -> Sequence[str] | None:
        names = self.class_names if self.class_names is not None else getattr(dataset, "classes", None)
        while names is None and hasattr(dataset, "dataset"):  # a Subset
            dataset = dataset.dataset
            names = getattr(dataset, "classes", None)
        usable = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
        return names if usable and names is not None and len(set(names)) == len(names) else None

    def rows(self) -> dict[str, list[tuple[str, int]]]:
        """Class name → the (part, item number) of its images, in order of name."""
        if self._rows is None:
            rows: dict[str, list[tuple[str, int]]] = {}
            for part, dataset in self.parts.items():
                names = self._names(dataset)
                for number, label in enumerate(labels_of(dataset)):
                    known = names is not None and 0 <= label < len(names)
                    name = names[label] if known and names is not None else str(label)
                    rows.setdefault(f"{part}/{name}" if part else name, []).append((part, number))
            self._rows = {name: rows[name] for name in sorted(rows)}
        return self._rows

    def classes_of_parts(self) -> dict[str, list[str]]:
        """The classes of each part.

        Raises:
            ValueError: if the parts have named classes in common: then they are parts by image.
        """
        classes = {part: [name for name in self.rows() if name.startswith(f"{part}/")] for part in self.parts}
        if all(self._names(dataset) is not None for dataset in self.parts.values()):
            bare = {part: {name.partition("/")[2] for name in names} for part, names in classes.items()}
            for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
                if both := sorted(bare[a] & bare[b]):
                    raise ValueError(
                        f"The {a} and {b} datasets have {len(both)} classes in common, such as {both[0]!r}; few-shot "
                        "splits share none. Join them to one dataset and pass split=… or fractions=…."
                    )
        return classes

    @property
    def counts(self) -> Mapping[str, int]:
        """See :class:`ImageSource`."""
        return {name: len(rows) for name, rows in self.rows().items()}

    def stamp(self) -> str:
        """Hash of types, labels, some images and, if known, the files' sizes and times."""
        digest = hashlib.sha256()
        for part, dataset in self.parts.items():
            names = self._names(dataset)
            digest.update(f"{part} {type(dataset).__name__} {len(dataset)} {names}\n".encode())
            digest.update(np.asarray(labels_of(dataset), np.int64).tobytes())
            samples = getattr(dataset, "samples", None)
            if isinstance(samples, Sequence) and isinstance(samples[0], tuple) and os.path.isfile(samples[0][0]):
                for path, *_ in samples:
                    state = os.stat(path)
                    digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
            for number, pixels in self._probes(part):
                digest.update(f"{number} {pixels.shape}".encode() + pixels.tobytes())
        return digest.hexdigest()

    def _probes(self, part: str) -> list[tuple[int, NDArray[np.uint8]]]:
        """Some items, read several times: a transform with probability 0.2 stays unseen once in a million.

        Raises:
            ValueError: if an item is another one each time.
        """
        if part not in self._read:
            dataset = self.parts[part]
            numbers = sorted(set(np.linspace(0, len(dataset) - 1, _PROBES).astype(int).tolist()))
            self._read[part] = [(number, self.pixels(part, number)) for number in numbers]
            for number, pixels in self._read[part] * max(3, _PROBES // len(numbers)):
                if not np.array_equal(pixels, self.pixels(part, number)):
                    raise ValueError(
                        f"{type(dataset).__name__} returns another image each time item {number} is read: it has a "
                        "random transform. Leave that out; random_crop=…, horizontal_flip=… and color_jitter=… are "
                        "arguments here."
                    )
        return self._read[part]

    def read(self, name: str, index: int) -> Any:
        """One item after the other: a stranger's dataset may not expect threads. They share the scaling.

        Raises:
            NotEightBitError: if grey and colour images are mixed.
        """
        part, number = self.rows()[name][index]
        with self._lock:
            image = eight_bit(_item(self.parts[part], number)[0], self.exif)
        if (image.mode == "L") != self.grey:
            kinds = ("grey", "in colour") if self.grey else ("in colour", "grey")
            raise NotEightBitError(f"the first image is {kinds[0]}, this one is {kinds[1]}; convert all to one of them")
        return image

    def describe(self, name: str, index: int) -> str:
        """Type and item number, and the file if the dataset lists it."""
        part, number = self.rows()[name][index]
        return f"{self._where(part, number)} of class {name!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def labels_of(dataset: Any) -> list[int]:
    """The label of each item.

    A list of labels that the dataset keeps (``targets`` or the like) spares reading the images. It is believed if there
    is no ``target_transform``, and up to a hundred items, of as many labels as can be, have the labels of the list.

    Raises:
        TypeError: if labels are not integers.
    """
    listed = None if _transforms_labels(dataset) else _listed(dataset)
    if listed is not None:
        _, firsts = np.unique(listed, return_index=True)
        some = np.random.RandomState(0).permutation(firsts)[: 100 - _PROBES]
        sample = np.union1d(np.linspace(0, len(listed) - 1, _PROBES).astype(int), some).tolist()
        if all(_agrees(dataset, number, listed[number]) for number in sample):
            return [int(label) for label in listed]
    return [_label(dataset, number) for number in range(len(dataset))]


def _agrees(dataset: Any, number: int, label: int) -> bool:
    try:
        return _label(dataset, number) == label
    except (OSError, SyntaxError, ValueError):  # a broken image, which is named when it is decoded
        return True


def _transforms_labels(dataset: Any) -> bool:
    given = dataset.__dict__ if hasattr(dataset, "__dict__") else {}
    inner = given.get("dataset")
    return given.get("target_transform") is not None or (inner is not None and _transforms_labels(inner))


def _listed(dataset: Any) -> NDArray[Any] | None:
    """The labels that a dataset keeps beside its items, if there are any and they are integers."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # a Subset
        inner = _listed(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, np.int64)]
    tensors: Sequence[Any] = getattr(dataset, "tensors", ())  # a TensorDataset's
    candidates = [getattr(dataset, name, None) for name in ("targets", "labels", "_labels")]
    candidates.append(tensors[1] if len(tensors) == 2 else None)
    for labels in candidates:
        if isinstance(labels, (Sequence, np.ndarray, Tensor)) and len(labels) == len(dataset):
            array = np.asarray(labels)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return array
    return None


def _label(dataset: Any, number: int) -> int:
    label = whole_labels(_item(dataset, number)[1], type(dataset).__name__)
    if label.size != 1:
        raise TypeError(f"{type(dataset).__name__} has a label of shape {label.shape}; labels must be integers.")
    return int(label.reshape(()))


def _item(dataset: Any, number: int) -> tuple[Any, Any]:
    item = dataset[number]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(
            f"{type(dataset).__name__}[{number}] is of type {type(item).__name__}; items must be pairs (image, label)."
        )
    return item[0], item[1]
