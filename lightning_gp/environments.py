"""``Environments``: the batch that every module, callback and data module of this package speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.types import Examples, Split


class Environments(NamedTuple):
    """A batch of E environments (tasks), their examples stacked along a leading environment axis.

    It is a plain pytree of tensors: Lightning moves it between devices, ``torch.vmap`` maps over it.

    Attributes:
        support: inputs (E, K, *feature) and targets (E, K, *target) that the inner loop may use (D_tr).
        query: inputs (E, Q, *feature) and targets (E, Q, *target) that the outer loop is judged on (D_te),
            or None for problems without that split (IRM, joint training).

    Example:
        >>> x, y = torch.zeros(4, 10, 1), torch.zeros(4, 10, 1)
        >>> batch = Environments(support=(x, y), query=(x, y))
        >>> count_of(batch)
        4
    """

    support: Examples
    query: Examples | None = None

    def split(self, name: Split) -> Examples:
        """The (x, y) of the query or support set; the support set also stands in where there is no query set.

        Args:
            name: ``"query"`` or ``"support"``.

        Raises:
            ValueError: if it is neither.
        """
        if name not in ("support", "query"):
            raise ValueError(f"split={name!r} is unknown; use 'support' or 'query'.")
        return self.query if name == "query" and self.query is not None else self.support

    def chunks(self, size: int) -> Iterator[Environments]:
        """Consecutive slices of at most ``size`` environments, as views; all of them are the batch itself."""
        count = count_of(self)
        for start in range(0, count, size):
            yield self if size >= count else self.map(itemgetter(slice(start, start + size)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Environments:
        """The batch with ``function`` of each of its tensors.

        Example:
            >>> x = torch.zeros(4, 10, 1)
            >>> Environments((x, x)).map(torch.Tensor.double).support[0].dtype
            torch.float64
        """
        x, y = self.support
        query = None if self.query is None else (function(self.query[0]), function(self.query[1]))
        return Environments((function(x), function(y)), query)

    def tensors(self) -> list[Tensor]:
        """All tensors: x and y of the support set and, where there is one, of the query set."""
        return [*self.support, *(self.query or ())]


EnvironmentBatch = Environments | Sequence[Environments]
"""Equal-sized environments stacked in one ``Environments``, or a list of them where sizes differ."""


def count_of(environments: Environments) -> int:
    """Number of environments E in a stacked batch."""
    return environments.support[0].shape[0]


def as_batches(batch: EnvironmentBatch) -> list[Environments]:
    """The batch as a list of stacked ``Environments``, each checked.

    Args:
        batch: one ``Environments``, an (x, y) pair or ((x, y), (x, y)) tuple of the same layout, or a sequence of
            ``Environments`` of unequal sizes.

    Raises:
        TypeError: if the batch is none of these.
        ValueError: if the leading (environment) axes disagree or there is no environment.
    """
    if isinstance(batch, Environments):
        return [check(batch)]
    if isinstance(batch, (list, tuple)) and batch and all(isinstance(item, Environments) for item in batch):
        return [check(item) for item in batch]
    raise TypeError(
        f"Expected a batch of type Environments (or a list of them), got {type(batch).__name__}. Build it as "
        "Environments(support=(x, y), query=(x, y)) with x of shape (environments, examples, *feature)."
    )


def check(environments: Environments) -> Environments:
    """Returns the batch unchanged if its leading axes agree.

    Raises:
        ValueError: naming the split and the shapes that disagree.
    """
    count = None
    for split, examples in (("support", environments.support), ("query", environments.query)):
        if examples is None:
            continue
        if not (
            isinstance(examples, (tuple, list)) and len(examples) == 2 and all(isinstance(t, Tensor) for t in examples)
        ):
            raise TypeError(
                f"{split} set must be a pair (x, y) of tensors, both beginning with (environments, examples) axes; got "
                f"{type(examples).__name__}."
            )
        x, y = examples
        if x.ndim < 2 or y.ndim < 2 or x.shape[:2] != y.shape[:2]:
            raise ValueError(
                f"{split} set: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; both must begin with the same "
                "(environments, examples) axes."
            )
        if x.shape[0] == 0 or x.shape[1] == 0:
            raise ValueError(f"{split} set is empty: x has shape {tuple(x.shape)}; every environment needs examples.")
        if count is not None and x.shape[0] != count:
            raise ValueError(f"support has {count} environments but query has {x.shape[0]}; they must be the same.")
        count = x.shape[0]
    return environments


def stack(environments: Sequence[Environments]) -> Environments:
    """Stacks single environments (no leading axis) of equal size into one batch.

    Args:
        environments: each with x (K, *feature) and y (K, *target).
    """
    stacked = [torch.stack(each) for each in zip(*(one.tensors() for one in environments), strict=True)]
    query = None if environments[0].query is None else (stacked[2], stacked[3])
    return Environments((stacked[0], stacked[1]), query)
