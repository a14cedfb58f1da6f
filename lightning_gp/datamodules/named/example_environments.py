"""A user's own data as an IRM problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_gp.datamodules.named.base import NamedEnvironmentsDataModule
from lightning_gp.datamodules.named.pieces import check_environments
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
