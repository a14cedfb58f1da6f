"""``Environments``: the batch that every module, callback and data module of this package speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.types import Examples


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


EnvironmentBatch = Environments | Sequence[Environments]
"""Equal-sized environments stacked in one ``Environments``, or a list of them where sizes differ."""


def count_of(environments: Environments) -> int:
    """Number of environments E in a stacked batch."""
    return environments.support[0].shape[0]


def examples_of(environments: Environments, split: str) -> Examples:
    """The (x, y) of ``split``; ``"query"`` falls back to the support set where no query set exists.

    Raises:
        ValueError: if ``split`` is neither ``"support"`` nor ``"query"``.
    """
    if split not in ("support", "query"):
        raise ValueError(f"split={split!r} is unknown; use 'support' or 'query'.")
    if split == "query" and environments.query is not None:
        return environments.query
    return environments.support


def chunks_of(environments: Environments, size: int) -> Iterator[Environments]:
    """Consecutive slices of at most ``size`` environments, as views."""
    for start in range(0, count_of(environments), size):
        stop = start + size
        query = environments.query
        yield Environments(
            support=(environments.support[0][start:stop], environments.support[1][start:stop]),
            query=None if query is None else (query[0][start:stop], query[1][start:stop]),
        )


def clone(environments: Environments) -> Environments:
    """A copy that autograd may record, also of tensors that were made in inference mode."""

    def copy(examples: Examples) -> Examples:
        return examples[0].clone(), examples[1].clone()

    return Environments(copy(environments.support), None if environments.query is None else copy(environments.query))


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
    support = tuple(torch.stack([e.support[i] for e in environments]) for i in (0, 1))
    if environments[0].query is None:
        return Environments((support[0], support[1]))
    queries = [e.query for e in environments if e.query is not None]
    query = tuple(torch.stack([q[i] for q in queries]) for i in (0, 1))
    return Environments((support[0], support[1]), (query[0], query[1]))
