"""Where the classes of a subset of ILSVRC 2012 can lie: folders by split, one tree, or ImageNet's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

ILSVRC = "ILSVRC/Data/CLS-LOC/train"  # inside the archive that image-net.org and Kaggle hand out


def class_folders(root: Path, classes: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The folder of each class, in the first of these layouts that has the most of the classes.

    ``root/<split>/<class>``, ``root/<class>``, ``root/images/<class>``, ``root/train/<class>`` (an ILSVRC train tree),
    ``root/ILSVRC/Data/CLS-LOC/train/<class>``.

    Args:
        root: folder of the data.
        classes: WordNet ids of each split.

    Returns:
        WordNet id → folder, those that exist; empty if there are none.
    """
    layouts = [
        {name: root / split / name for split, names in classes.items() for name in names},
        *(
            {name: root / folder / name for names in classes.values() for name in names}
            for folder in ("", "images", "train", ILSVRC)
        ),
    ]
    found = [{name: folder for name, folder in layout.items() if folder.is_dir()} for layout in layouts]
    return max(found, key=len)  # the first of equals


def ilsvrc_number(file_name: str) -> int:
    """The number that orders the images of a class: 10026 of ``n01532829_10026.JPEG``, 5 of ``n0153282900000005.jpg``.

    Raises:
        ValueError: naming the file, if it is not called so.
    """
    digits = Path(file_name).stem[9:].lstrip("_")
    if not digits.isdecimal():
        raise ValueError(
            f"{file_name!r} is not called like an image of ImageNet, such as n01532829_10026.JPEG; remove it."
        )
    return int(digits)
