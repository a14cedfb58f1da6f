"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each.

[L15] B. Lake, R. Salakhutdinov, J. Tenenbaum 2015, *Human-level concept learning through probabilistic program
    induction*: the data.
[V16] O. Vinyals et al. 2016, *Matching networks for one shot learning*: 28×28, rotations as new classes, and the
    1028/172/423 split that goes by their name.
[F17] C. Finn, P. Abbeel, S. Levine 2017, *Model-agnostic meta-learning for fast adaptation of deep networks*, §5.2:
    1200 random characters for training irrespective of alphabet, rotations by multiples of 90°.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gp.checks import whole
from lightning_gp.datamodules.episodes.class_episodes import ClassImages
from lightning_gp.datamodules.images.benchmark import shipped_list
from lightning_gp.datamodules.images.classes import ImageClassDataModule
from lightning_gp.datamodules.images.sources.class_tree import ImageFile, scan_folder, scan_zip
from lightning_gp.datamodules.images.sources.image_source import Decoding, FileSource

DRAWINGS = 20
_PARTS = ("images_background", "images_evaluation")
_RANDOM_SIZES = {"train": 1200, "val": 100, "test": 323}


def vinyals_split() -> dict[str, list[str]]:
    """Names ``alphabet/character`` of the 1028 training, 172 validation and 423 test characters."""
    splits: dict[str, dict[str, list[int]]] = shipped_list("omniglot_vinyals")
    return {
        split: [f"{alphabet}/character{number:02d}" for alphabet in alphabets for number in alphabets[alphabet]]
        for split, alphabets in splits.items()
    }


def random_split(seed: int) -> dict[str, list[str]]:
    """1200 random characters for training [F17]; of the 423 that they test on, 100 are kept for validation."""
    names = sorted(name for names in vinyals_split().values() for name in names)
    order = np.random.RandomState(seed).permutation(len(names))  # its stream is frozen across numpy versions
    bounds = np.cumsum([0, *_RANDOM_SIZES.values()])
    return {
        split: sorted(names[i] for i in order[start:stop])
        for split, start, stop in zip(_RANDOM_SIZES, bounds, bounds[1:], strict=False)
    }


class OmniglotDataModule(ImageClassDataModule):
    """Few-shot episodes on Omniglot; ink is 1, paper 0.

    The folders ``images_background`` and ``images_evaluation`` (or zip archives of these names, which are read without
    unpacking) are looked for in ``root`` and ``root/omniglot-py``. They are decoded once, into a cache of 25 MB.

    Rotations by 90°, 180° and 270° count as classes of their own, which makes four times as many training classes
    [V16, F17]. Evaluation uses upright characters unless ``eval_rotations`` is set.

    Args:
        root: the data folder.
        ways: N, classes per episode.
        shots: K, support images per class.
        queries: Q, query images per class; K + Q <= 20.
        environments_per_batch: E, over all devices.
        split: ``"vinyals"`` (1028/172/423 characters) or ``"random1200"`` (1200/100/323 at random).
        split_seed: of ``"random1200"``. Apart from ``seed``: other episodes do not mean other test classes.
        rotations: whether rotated characters are further training classes.
        eval_rotations: the same for validation and test.
        image_size: side in pixels.
        download: whether torchvision may fetch what is missing.
        cache_dir: folder of the cache; default is the environment variable ``LIGHTNING_GP_CACHE``, else ``root``, else
            (``root`` being read-only) the user's cache folder.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        ValueError: if an argument is out of range or the data are incomplete; the message names what is missing.
        FileNotFoundError: if there are no data and ``download`` is False.
    """

    cache_name = "omniglot"

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        environments_per_batch: int = 32,
        split: str = "vinyals",
        split_seed: int = 0,
        rotations: bool = True,
        eval_rotations: bool = False,
        image_size: int = 28,
        download: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in ("vinyals", "random1200"):
            raise ValueError(f"split={split!r} is unknown; use 'vinyals' or 'random1200'.")
        whole(1, shots=shots, queries=queries, image_size=image_size)
        whole(0, split_seed=split_seed)
        if shots + queries > DRAWINGS:
            raise ValueError(
                f"shots + queries = {shots} + {queries} = {shots + queries}, but an Omniglot character has {DRAWINGS} "
                f"drawings; choose shots + queries <= {DRAWINGS}."
            )
        super().__init__(root, ways, shots, queries, environments_per_batch, image_size, cache_dir=cache_dir, **kwargs)
        self.classes = vinyals_split() if split == "vinyals" else random_split(split_seed)
        for name, names in self.classes.items():
            count = len(names) * (4 if self._rotated(name, rotations, eval_rotations) else 1)
            if ways > count:
                raise ValueError(f"ways={ways}, but the {name} split has {count} classes; choose ways <= {count}.")
        self.rotations, self.eval_rotations = rotations, eval_rotations
        self.download = download

    @staticmethod
    def _rotated(split: str, rotations: bool, eval_rotations: bool) -> bool:
        return rotations if split == "train" else eval_rotations

    def prepare_data(self) -> None:
        """Downloads if allowed and necessary; builds the cache."""
        if self.download and not all(find_part(self.root, part) for part in _PARTS):
            from torchvision.datasets import Omniglot

            for background in (True, False):
                Omniglot(str(self.root), background=background, download=True)
        super().prepare_data()

    def find_source(self) -> FileSource:
        """The folders or archives of both parts."""
        tree = scan(self.root)
        self._check(tree)
        return FileSource(tree, self.root)

    def class_splits(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """Upright characters of each split."""
        return self.classes

    def decoding(self) -> Decoding:
        """Grey, ink bright."""
        return Decoding(self.image_size, grey=True, invert=True)

    def load_split(self, split: str) -> ClassImages:
        """The characters of a split, rotated ones as further classes."""
        upright = super().load_split(split)
        chosen = np.stack([upright.images[start : start + DRAWINGS] for start in upright.first_rows()])
        names = list(upright.names)
        if self._rotated(split, self.rotations, self.eval_rotations):
            chosen = np.concatenate([np.rot90(chosen, turns, axes=(2, 3)) for turns in range(4)])
            names = [f"{name}@{90 * turns}" for turns in range(4) for name in names]
        counts = np.full(len(names), DRAWINGS, dtype=np.int64)
        return ClassImages(chosen.reshape(-1, *chosen.shape[2:]), counts, names)

    def _check(self, tree: dict[str, list[ImageFile]]) -> None:
        missing = [name for names in self.classes.values() for name in names if name not in tree]
        if missing:
            raise ValueError(
                f"Omniglot in {self.root} is incomplete: {len(missing)} of its characters are missing, among them "
                f"{missing[0]!r}. Copy the complete images_background and images_evaluation there, or remove both and "
                "use download=True."
            )
        for name, images in tree.items():
            if len(images) != DRAWINGS:
                raise ValueError(
                    f"Omniglot in {self.root} is incomplete: {name!r} has {len(images)} images ({images[0]}, …), it "
                    f"should have {DRAWINGS}. Copy the complete folder there, or remove it and use download=True."
                )


def find_part(root: Path, part: str) -> Path | None:
    """The folder or else the zip archive called ``part`` in ``root`` or ``root/omniglot-py``."""
    folders = (root, root / "omniglot-py")
    found = [folder / part for folder in folders if (folder / part).is_dir()]
    found += [folder / f"{part}.zip" for folder in folders if (folder / f"{part}.zip").is_file()]
    return found[0] if found else None


def scan(root: Path) -> dict[str, list[ImageFile]]:
    """All characters below ``root``: ``alphabet/character`` → images.

    Raises:
        FileNotFoundError: naming the folder and what it should contain.
    """
    tree: dict[str, list[ImageFile]] = {}
    for part in _PARTS:
        path = find_part(root, part)
        if path is None:
            raise FileNotFoundError(
                f"No Omniglot in {root.absolute()}: expected {part}/<alphabet>/<character>/*.png there or in its "
                f"subfolder omniglot-py (or {part}.zip, likewise). Set root to the folder that has it, or use "
                "download=True to fetch it."
            )
        tree.update(scan_folder(path, 2) if path.is_dir() else scan_zip(path, part, 2))
    return tree
