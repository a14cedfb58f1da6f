"""Tiny images in class folders, one shade per class."""

from __future__ import annotations

import numpy as np
from PIL import Image


def write_classes(root, classes=5, images=20, size=16, mode="RGB"):
    """``root/<split>/<class>/<number>.png``."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(classes):
            folder = root / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for i in range(images):
                shape = (size, size, 3) if mode == "RGB" else (size, size)
                pixels = np.clip(rng.normal(40 * number + 30, 20, shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels, mode).save(folder / f"{i}.png")
