"""Few-shot episodes of vectors, sequences and signals: examples of any shape and type, left as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gp.checks import whole
from lightning_gp.datamodules.episodes.augmentation import NumberedEpisodes
from lightning_gp.datamodules.episodes.class_episodes import ClassImages, FewShotEpisodes
from lightning_gp.datamodules.episodes.class_splits import check_fractions, checked_splits, random_splits
from lightning_gp.datamodules.episodes.few_shot import FewShotDataModule
from lightning_gp.datamodules.episodes.labels import whole_labels
from lightning_gp.datamodules.episodes.mapped import packed, unpacked
from lightning_gp.environments import Environments
from lightning_gp.types import Examples


class OrderedRows:
    """Rows of ``x`` class after class, without moving them.

    Args:
        x: array or tensor (M, *shape), perhaps memory-mapped.
        order: (M,), which row of ``x`` is row i here.
    """

    def __init__(self, x: Any, order: NDArray[np.int64]) -> None:
        self.x, self.order = x, order

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ``x``."""
        return tuple(self.x.shape)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """These rows, (*rows.shape, *shape); no others are read."""
        rows = self.order[rows]
        return self.x[torch.from_numpy(rows)] if isinstance(self.x, Tensor) else torch.from_numpy(self.x[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {"x": packed(self.x), "order": self.order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, x=unpacked(state["x"]))


class TensorEpisodes(FewShotEpisodes):
    """Episodes over ``OrderedRows``."""

    def examples(self, rows: NDArray[np.int64]) -> Tensor:
        """The examples in these rows."""
        return self.data.images.take(rows)  # type: ignore[return-value]  # OrderedRows


class TensorDataModule(FewShotDataModule):
    """Few-shot episodes of arrays; see :meth:`FewShotDataModule.from_tensors`.

    A batch has support x (E, N·K, *shape), y (E, N·K) in 0 … N − 1; query likewise with Q for K. Nothing is scaled.
    On the device floating-point x gets the type of the module's parameters; other types, such as the integers of
    tokens, stay.

    Args:
        x: array or tensor (M, *shape) of any type that torch knows. Neither copied nor sorted: an array that is
            memory-mapped (``np.load(path, mmap_mode="r")``) stays in its file, of which each batch reads its rows.
        y: (M,), integer labels, or floats that are whole numbers.
        ways: N, classes per episode.
        shots: K, support examples per class.
        queries: Q, query examples per class.
        environments_per_batch: E, over all devices.
        split: labels (or class names) of ``"train"``, ``"val"`` and ``"test"``; None shares them out at random.
        fractions: of the classes in each split, if ``split`` is None.
        split_seed: of the random split. Apart from ``seed``: other episodes do not mean other test classes.
        class_names: of the labels 0, 1, …; None takes the numbers.
        min_images: classes with fewer examples are left out; see :class:`FewShotDataModule`.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        TypeError: if x is neither array nor tensor, of a type that torch does not know, or a label is no integer.
        ValueError: if x and y do not fit together, or the splits do not fit the classes.
    """

    unsaved = ("x", "y")  # checkpoints hold no data

    def __init__(
        self,
        x: Any,
        y: Any,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        environments_per_batch: int = 32,
        split: Mapping[str, Sequence[str | int]] | None = None,
        fractions: tuple[float, float, float] = (0.64, 0.16, 0.2),
        split_seed: int = 0,
        class_names: Sequence[str] | None = None,
        min_images: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_fractions(fractions)
        whole(0, split_seed=split_seed)
        super().__init__(ways, shots, queries, environments_per_batch, min_images=min_images, **kwargs)
        if any(self.augmentation) or self.mean is not None:
            raise ValueError("Augmentation, mean=… and std=… are for images; from_tensors leaves x as it is.")
        if not isinstance(x, (np.ndarray, Tensor)):
            raise TypeError(f"x is of type {type(x).__name__}; it must be an array or a tensor (M, *shape).")
        labels = whole_labels(y, "y")
        if x.ndim < 1 or labels.ndim != 1 or len(x) != len(labels) or not len(labels):
            raise ValueError(f"x {tuple(x.shape)} and y {labels.shape}; give (M, *shape) and (M,), M of at least 1.")
        OrderedRows(x, np.zeros(1, np.int64)).take(np.zeros(1, np.int64))  # a type that torch does not know: TypeError
        numbers, counts = np.unique(labels, return_counts=True)
        named = dict(enumerate(class_names or ()))
        self.names = {int(label): named.get(int(label), str(label)) for label in numbers}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError(f"class_names={list(class_names or ())!r} names two classes alike.")
        rows: Any = OrderedRows(x, np.argsort(labels, kind="stable"))
        self._classes = ClassImages(rows, counts, list(self.names.values()))
        if split is None:
            wanted: Mapping[str, Sequence[str]] = random_splits(self._classes.names, fractions, split_seed)
        else:
            wanted = {
                part: [name if isinstance(name, str) else self.names.get(int(name), str(name)) for name in names]
                for part, names in split.items()
            }
        self.splits = checked_splits(wanted, self._classes.names, type(self).__name__)

    def load_split(self, split: str) -> ClassImages:
        """The classes of a split."""
        return self._classes.of(self.splits[split])

    def make_episodes(self, split: str, length: int) -> TensorEpisodes:
        """Episodes over the classes of ``split``."""
        data = self.large_classes(split, self.load_split(split))
        return TensorEpisodes(data, self.ways, self.shots, self.queries, split, length, self.seed)

    def finished(
        self, batch: Environments | NumberedEpisodes, dtype: torch.dtype = torch.float32, normalize: bool = True
    ) -> Environments:
        """The batch, floating-point x as ``dtype``."""

        def finish(examples: Examples) -> Examples:
            x, y = examples
            return (x.to(dtype) if x.is_floating_point() else x), y

        return Environments(finish(batch.support), None if batch.query is None else finish(batch.query))

    def show_episode(self, *arguments: Any, **named: Any) -> Any:
        """There is nothing to draw.

        Raises:
            TypeError: always.
        """
        raise TypeError("from_tensors has no images to show.")
