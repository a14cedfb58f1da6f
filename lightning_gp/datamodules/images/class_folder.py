"""Few-shot episodes of the reader's own folders of images.

[R17] S. Ravi, H. Larochelle 2017, *Optimization as a model for few-shot learning*: lists of ``filename,label`` for each
    split, as they are in use for mini-ImageNet.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp.checks import whole
from lightning_gp.datamodules.episodes.class_splits import check_fractions, random_splits
from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.images.classes import ImageClassDataModule
from lightning_gp.datamodules.images.sources.class_tree import ImageFile, image_file
from lightning_gp.datamodules.images.sources.image_source import FileSource, folder_source

_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class ClassFolderDataModule(ImageClassDataModule):
    """Few-shot episodes of a folder of images; ``ClassFolderDataModule("photos", ways=5, shots=1)``.

    One of three layouts:

    - ``root/<split>/<class>/*.jpg``, the splits being ``train``, ``val`` (or ``valid``, ``validation``) and ``test``;
    - ``root/<class>/*.jpg`` and a ``split_file``: JSON ``{"train": [class, …], "val": […], "test": […]}``;
    - images anywhere below ``root`` and lists ``filename,label`` of them [R17]: ``split_file`` is a folder with
      ``train.csv``, ``val.csv`` and ``test.csv``, or one CSV file with a further column ``split``. Files are looked for
      in ``root``, ``root/images`` and ``root/<label>``.

    or ``root/<class>/*.jpg`` and ``fractions``, to share the classes out at random. Images may be JPEG, PNG, BMP, GIF,
    PPM, TIFF or WebP.

    Args:
        root: folder of the images.
        split_file: see above; None for the first layout.
        fractions: of the classes for train, val and test, in place of a ``split_file``.
        split_seed: of the random split. Apart from ``seed``: other episodes do not mean other test classes.
        ways: N, classes per episode.
        shots: K, support images per class.
        queries: Q, query images per class.
        environments_per_batch: E, over all devices.
        image_size: side in pixels.
        kwargs: see :class:`ImageClassDataModule`.

    Raises:
        FileNotFoundError: naming the folder or file that is missing.
        ValueError: if a class is in two splits, or a split file cannot be read; the message names it.
    """

    cache_name = "class-folder"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split_file: str | os.PathLike[str] | None = None,
        fractions: tuple[float, float, float] | None = None,
        split_seed: int = 0,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        environments_per_batch: int = 4,
        image_size: int = 84,
        **kwargs: Any,
    ) -> None:
        if split_file is not None and fractions is not None:
            raise ValueError(
                f"split_file={str(split_file)!r} and fractions={fractions} are two ways to split; give one."
            )
        whole(0, split_seed=split_seed)
        if fractions is not None:
            check_fractions(fractions)
        super().__init__(root, ways, shots, queries, environments_per_batch, image_size, **kwargs)
        self.split_file = None if split_file is None else Path(split_file).expanduser()
        self.fractions, self.split_seed = fractions, split_seed
        self._splits: Mapping[str, Sequence[str]] = {}

    def find_source(self) -> FileSource:
        """The files of the layout."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root.absolute()}; set root to the folder of the images.")
        if self.fractions is not None:
            source = folder_source(self.root)
            self._splits = random_splits(list(source.counts), self.fractions, self.split_seed)
            return source
        if self.split_file is None:
            return self._by_folders()
        if not self.split_file.exists():
            raise FileNotFoundError(f"There is no split_file {self.split_file.absolute()}.")
        if self.split_file.is_dir() or self.split_file.suffix.lower() == ".csv":
            return self._by_lists(self.split_file)
        self._splits = read_json_split(self.split_file)
        names = [name for split in self._splits.values() for name in split]
        return folder_source(self.root, classes=names)

    def class_splits(self, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """As the folders or the split file have it."""
        return self._splits

    def _by_folders(self) -> FileSource:
        tree: dict[str, Sequence[ImageFile]] = {}
        splits: dict[str, list[str]] = {}
        for split, names in _NAMES.items():
            found = [self.root / name for name in names if (self.root / name).is_dir()]
            if not found:
                raise FileNotFoundError(
                    f"{self.root.absolute()} has no folder {' or '.join(names)}: expected "
                    f"{names[0]}/<class>/*.jpg. If the classes are directly in {self.root.name}, say which belong to "
                    "which split with split_file=… or share them out with fractions=(0.64, 0.16, 0.2)."
                )
            part = folder_source(found[0]).tree
            if not part:
                raise FileNotFoundError(f"{found[0]} has no folders with images; expected {found[0]}/<class>/*.jpg.")
            splits[split] = [f"{split}/{name}" for name in part]
            tree.update({f"{split}/{name}": files for name, files in part.items()})
        where: dict[str, str] = {}
        for split, classes in splits.items():
            for name in (path.partition("/")[2] for path in classes):
                if name in where:
                    raise ValueError(
                        f"Class {name!r} is in {self.root / where[name]} and in {self.root / split}, but few-shot "
                        "splits share no classes. Put all its images into one of them, or all classes into one folder "
                        "and use split_file=… or fractions=…."
                    )
                where[name] = split
        self._splits = splits
        return FileSource(tree, self.root)

    def _by_lists(self, path: Path) -> FileSource:
        tree: dict[str, list[ImageFile]] = {}
        splits: dict[str, dict[str, None]] = {split: {} for split in SPLITS}
        for split, filename, label in read_lists(path):
            tree.setdefault(label, []).append(self._find(filename, label, split))
            splits[split][label] = None
        self._splits = {split: list(labels) for split, labels in splits.items()}
        return FileSource(tree, self.root)

    def _find(self, filename: str, label: str, split: str) -> ImageFile:
        for member in (filename, f"images/{filename}", f"{label}/{filename}"):
            try:
                return image_file(self.root, member, os.stat(self.root / member))
            except (FileNotFoundError, NotADirectoryError):
                continue
        raise FileNotFoundError(
            f"Image {filename!r} of class {label!r} in the {split} list is not in {self.root.absolute()}, nor in its "
            f"folders images and {label}. Copy it there, or set root to the folder that has it."
        )


def read_json_split(path: Path) -> dict[str, list[str]]:
    """The class names of each split.

    Raises:
        ValueError: naming the file, if it has another form.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}).") from error
    splits = (
        {split: [content[n] for n in names if n in content] for split, names in _NAMES.items()}
        if isinstance(content, dict)
        else {}
    )
    good = all(
        len(found) == 1 and isinstance(found[0], list) and all(isinstance(n, str) for n in found[0])
        for found in splits.values()
    )
    if not splits or not good:
        raise ValueError(f'{path} must hold {{"train": [class names], "val": […], "test": […]}}.')
    return {split: found[0] for split, found in splits.items()}


def read_lists(path: Path) -> Iterator[tuple[str, str, str]]:
    """(split, filename, label) of each row of one CSV file or of the folder's three.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: naming file and line, if a row or the header is wrong.
    """
    if not path.is_dir():
        yield from _rows(path, None)
        return
    for split, names in _NAMES.items():
        found = [path / f"{name}.csv" for name in names if (path / f"{name}.csv").is_file()]
        if not found:
            raise FileNotFoundError(f"{path.absolute()} has no {split}.csv; a folder of lists has one for each split.")
        yield from _rows(found[0], split)


def _rows(path: Path, split: str | None) -> Iterator[tuple[str, str, str]]:
    known = {name: split for split, names in _NAMES.items() for name in names}
    with path.open(newline="", encoding="utf-8-sig") as file:  # with or without a byte-order mark
        header = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
        wanted = {"filename", "label"} | (set() if split else {"split"})
        if not wanted <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}; its first line must name {sorted(wanted)}.")
        for row in rows:
            which = split or known.get(row["split"])
            if which is None or not row["filename"] or not row["label"]:
                raise ValueError(
                    f"{path}, line {rows.line_num}: {row}; it needs filename, label"
                    + ("." if split else f" and a split ({', '.join(SPLITS)}).")
                )
            yield which, row["filename"].replace("\\", "/"), row["label"]
