"""Which class belongs to which split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_gp.datamodules.episodes.datasets import SPLITS


def checked_splits(splits: Mapping[str, Sequence[str]], classes: Sequence[str], owner: str) -> dict[str, list[str]]:
    """The splits, if each has classes, all exist and none is in two of them.

    Raises:
        ValueError: naming the split and the class that is wrong.
    """
    if set(splits) != set(SPLITS):
        raise ValueError(f"{owner}: the splits are {sorted(splits)}; they must be {', '.join(SPLITS)}.")
    known, taken = set(classes), dict[str, str]()
    for split in SPLITS:
        for name in splits[split]:
            if name not in known:
                raise ValueError(
                    f"{owner}: class {name!r} of the {split} split has no images; there are {len(classes)} classes, "
                    f"such as {list(classes)[:3]}. Add its images, or take it out of the split."
                )
            if name in taken:
                raise ValueError(
                    f"{owner}: class {name!r} is listed twice, in the splits {taken[name]} and {split}; "
                    "a class may be in one split only, and once."
                )
            taken[name] = split
    return {split: list(splits[split]) for split in SPLITS}


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuses what are no shares of a whole.

    Raises:
        ValueError: naming them.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions={tuple(fractions)}; give three numbers above 0 that add up to 1: the shares of the classes "
            f"for {', '.join(SPLITS)}."
        )


def random_splits(classes: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Classes shared out at random; the same for the same names and seed on every machine.

    Args:
        classes: their names, in any order.
        fractions: of the classes in ``"train"``, ``"val"`` and ``"test"``.
        seed: of the choice.

    Raises:
        ValueError: if the fractions are no shares of a whole, or leave a split without a class.

    Example:
        >>> {split: len(names) for split, names in random_splits("abcdefghij", (0.6, 0.2, 0.2), seed=0).items()}
        {'train': 6, 'val': 2, 'test': 2}
    """
    check_fractions(fractions)
    bounds = [0, *(round(len(classes) * share) for share in np.cumsum(fractions))]
    sizes = dict(zip(SPLITS, np.diff(bounds).tolist(), strict=True))
    if min(sizes.values()) < 1:
        raise ValueError(f"fractions={tuple(fractions)} of {len(classes)} classes leave a split without any: {sizes}.")
    names = sorted(classes)
    order = np.random.RandomState(seed).permutation(len(names))  # its stream is frozen across numpy versions
    return {
        split: sorted(names[i] for i in order[start:stop])
        for split, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False)
    }
