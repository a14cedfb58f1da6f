"""The images of a labelled map-style dataset as a source: its classes, its pixels, and what identifies it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_gp.datamodules.sources.image_source import ImageSource

_PROBES = 16  # images whose pixels enter the stamp


class DatasetSource(ImageSource):
    """A labelled dataset's images by class.

    Args:
        parts: datasets by the prefix of their classes' names; "" for none.
        class_names: of the labels; None for the datasets' own.
    """

    def __init__(self, parts: Mapping[str, Any], class_names: Sequence[str] | None) -> None:
        for dataset in parts.values():
            if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or len(dataset) == 0:
                raise TypeError(
                    f"dataset is of type {type(dataset).__name__}; it must be a map-style dataset, with a length above "
                    "0 and items (image, label)."
                )
        self.parts = dict(parts)
        self.class_names = class_names
        self.origin = ", ".join(type(dataset).__name__ for dataset in parts.values())
        self._lock = threading.Lock()
        self._rows: dict[str, list[tuple[str, int]]] | None = None

    def pixels(self, part: str, number: int) -> NDArray[np.uint8]:
        """Item ``number`` of a part as it is.

        Raises:
            ValueError: naming the item, if it is broken.
        """
        try:
            return _as_pixels(_item(self.parts[part], number)[0])
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
            for number in np.linspace(0, len(dataset) - 1, _PROBES).astype(int).tolist():
                pixels = self.pixels(part, number)
                digest.update(f"{number} {pixels.shape}".encode() + pixels.tobytes())
            if not np.array_equal(pixels, self.pixels(part, number)):
                raise ValueError(
                    f"{type(dataset).__name__} returns another image each time item {number} is read: it has a random "
                    "transform. Leave that out; random_crop=…, horizontal_flip=… and color_jitter=… are arguments here."
                )
        return digest.hexdigest()

    def read(self, name: str, index: int) -> NDArray[np.uint8]:
        """One item after the other: a stranger's dataset may not expect threads. They share the scaling."""
        part, number = self.rows()[name][index]
        with self._lock:
            return _as_pixels(_item(self.parts[part], number)[0])

    def describe(self, name: str, index: int) -> str:
        """Type and item number, and the file if the dataset lists it."""
        part, number = self.rows()[name][index]
        return f"{self._where(part, number)} of class {name!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def labels_of(dataset: Any) -> list[int]:
    """The label of each item, without reading the images if the dataset keeps labels apart.

    Raises:
        TypeError: if labels are not integers.
    """
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # a Subset
        inner = labels_of(dataset.dataset)
        return [inner[i] for i in dataset.indices]
    tensors: Sequence[Any] = getattr(dataset, "tensors", ())  # a TensorDataset's
    candidates = [getattr(dataset, name, None) for name in ("targets", "labels", "_labels")]
    candidates.append(tensors[1] if len(tensors) == 2 else None)
    for labels in candidates:
        if isinstance(labels, (Sequence, np.ndarray, Tensor)) and len(labels) == len(dataset):
            array = np.asarray(labels)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return [int(label) for label in array]
    return [_label(_item(dataset, number)[1], dataset) for number in range(len(dataset))]


def _label(label: Any, dataset: Any) -> int:
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{type(dataset).__name__} has a label of type {type(label).__name__}; labels must be integers."
        ) from error


def _item(dataset: Any, number: int) -> tuple[Any, Any]:
    item = dataset[number]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(
            f"{type(dataset).__name__}[{number}] is of type {type(item).__name__}; items must be pairs (image, label)."
        )
    return item[0], item[1]


def _as_pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 (height, width) or (height, width, 3) of a PIL image, array or tensor.

    Raises:
        ValueError: naming type, shape or range if it is no such image.
    """
    if hasattr(image, "convert"):  # PIL
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or pixels.dtype.kind not in "fu":
        raise ValueError(
            f"an image is of type {type(image).__name__}, shape {pixels.shape} and dtype {pixels.dtype}; it must be a "
            "PIL image, or an array or tensor (height, width), (height, width, 3) or (3, height, width) of uint8 or "
            "floating point"
        )
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"floating-point pixels reach from {pixels.min():.3g} to {pixels.max():.3g}, they must be in [0, 1]; "
                "leave out the normalisation, mean=… and std=… are arguments here"
            )
        pixels = np.rint(pixels * 255)
    return np.ascontiguousarray(pixels, dtype=np.uint8)
