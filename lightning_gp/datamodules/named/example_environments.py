"""A user's own data as an IRM problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_gp.datamodules.named.base import NamedEnvironmentsDataModule
from lightning_gp.datamodules.named.pieces import check_environments
from lightning_gp.datamodules.named.tables import environments_of, read_csv
from lightning_gp.types import Examples


class ExampleEnvironments(NamedEnvironmentsDataModule):
    """Any mapping from environment name to data, of equal or unequal sizes, as an IRM problem.

    Args:
        train: name -> (x, y) tensors with a leading axis of examples, or a map-style dataset of (x, y) items; the
            datasets are read once, into memory.
        test: the same for environments that only ``trainer.test`` sees, or None.
        val: the same, instead of holding out ``val_fraction``; environments as in ``train``.
        **kwargs: see ``NamedEnvironmentsDataModule``.

    Raises:
        ValueError: if an environment is empty, or x and y, or two environments, do not fit together.

    Example:
        >>> import torch
        >>> hospitals = {"a": (torch.zeros(8, 3), torch.zeros(8, 1)), "b": (torch.zeros(5, 3), torch.ones(5, 1))}
        >>> data = ExampleEnvironments(train=hospitals)
        >>> [batch.support[0].shape for batch in next(iter(data.train_dataloader()))]
        [torch.Size([1, 8, 3]), torch.Size([1, 5, 3])]
    """

    def __init__(
        self,
        train: Mapping[str, Any],
        test: Mapping[str, Any] | None = None,
        val: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given = {"train": train, "test": test, "val": val}
        self._given = {
            split: {name: tensors_of(data, name) for name, data in environments.items()}
            for split, environments in given.items()
            if environments is not None
        }
        for split, environments in self._given.items():
            check_environments(environments, split)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        environment: str,
        target: str,
        features: Sequence[str] | None = None,
        test: Sequence[str] = (),
        standardize: bool = True,
        labels: bool = False,
        **kwargs: Any,
    ) -> ExampleEnvironments:
        """The rows of a table, by the column that names their environment.

        Args:
            frame: a pandas DataFrame, or columns of equal length by name.
            environment: column of the environments' names.
            target: column of the targets, y (K, 1).
            features: columns of numbers, x (K, features); None for all others.
            test: names of the environments that only ``trainer.test`` sees.
            standardize: give each feature mean 0 and deviation 1 in the rows of the training environments together.
            labels: the targets are class numbers, y (K,).
            **kwargs: see ``NamedEnvironmentsDataModule``.

        Raises:
            ValueError: naming the column or the environment that is missing or cannot be used.
        """
        left = kwargs.get("leave_out")  # validated on, so that it must not have a part in the standardisation
        unseen = [*test, *([left] if left is not None else [])]
        splits = environments_of(frame, environment, target, features, unseen, standardize, labels)
        held = splits.pop("test", {})
        if left is not None:
            splits["train"][str(left)] = held.pop(str(left))
        return cls(**splits, **({"test": held} if held else {}), **kwargs)

    @classmethod
    def from_csv(cls, path: str | Path, environment: str, target: str, **kwargs: Any) -> ExampleEnvironments:
        """``from_frame`` of a CSV file with a header.

        Args:
            path: the file.
            environment: column of the environments' names.
            target: column of the targets.
            **kwargs: see ``from_frame``.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it has no rows or a row of another length; see ``from_frame``.
        """
        return cls.from_frame(read_csv(path), environment, target, **kwargs)

    def make_environments(self) -> Mapping[str, Mapping[str, Examples]]:
        """What was given."""
        return self._given


def tensors_of(data: Any, name: str) -> Examples:
    """The x and y of an environment given as two tensors or as a map-style dataset.

    Raises:
        ValueError: if it is neither, or empty.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(item, Tensor) for item in data):
        return data[0], data[1]
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, (tuple, list)):
        raise ValueError(
            f"Environment {name!r} must be a pair of tensors (x, y) or a map-style dataset of (x, y) items."
        )
    if len(data) == 0:
        raise ValueError(f"Environment {name!r} is empty; every environment needs examples.")
    items = [data[index] for index in range(len(data))]
    return tuple(torch.stack([torch.as_tensor(item[i]) for item in items]) for i in (0, 1))  # type: ignore[return-value]
