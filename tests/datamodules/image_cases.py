"""Small trees of images whose pixels tell class and number."""

from pathlib import Path

import numpy as np
from PIL import Image


def colour(label, number):
    """Of image ``number`` of class ``label``; no two are alike."""
    return (10 * label + 5, 10 * number + 5, 7)


def write_image(path, label, number, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(label, number)).save(path)


def write_tree(root, splits, images=4, suffix=".png"):
    """``root/<split>/<class>/<number>.png``; split "" puts the classes into ``root``. Classes count up."""
    label = 0
    for split, names in splits.items():
        for name in names:
            for number in range(images):
                write_image(Path(root) / split / name / f"{number}{suffix}", label, number)
            label += 1
    return Path(root)


THREE = {"train": ["ant", "bee", "cat"], "val": ["dog", "elk"], "test": ["fox", "gnu"]}


def identities(x):
    """The (class, number) of each image of a uint8 (..., height, width, 3) array."""
    corner = np.asarray(x)[..., 0, 0, :].reshape(-1, 3).astype(int)
    return [((r - 5) // 10, (g - 5) // 10) for r, g, _ in corner.tolist()]
