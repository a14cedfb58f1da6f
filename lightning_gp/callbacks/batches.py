"""Batches of any type: copied, counted and cut by what is in them."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_gp.callbacks.kinds import attributes

B = TypeVar("B")


def copied(batch: B) -> B:
    """A batch that code may change, without history: tensors of their own, in lists, dicts and objects of any type.

    Raises:
        ValueError: if an object in it cannot be copied.
    """
    return pytree.tree_map(_copied_leaf, batch)  # type: ignore[no-any-return]


def _copied_leaf(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if leaf is None or isinstance(leaf, (int, float, str, bytes)):
        return leaf
    # Tensors with a history refuse to be deep-copied; they are copied before.
    memo: dict[int, Any] = {id(each): each.detach().clone() for each in tensors(leaf)}
    try:
        return copy.deepcopy(leaf, memo)
    except Exception as error:
        raise ValueError(
            f"A probe keeps a copy of its batch, but {type(leaf).__name__} in it cannot be copied ({error}). Give the "
            "class a __deepcopy__, or collate batches into tensors, lists, dicts or dataclasses."
        ) from error


def tensors(thing: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors anywhere in a batch, in order: in containers and in attributes of objects."""
    seen = set() if seen is None else seen
    if id(thing) in seen or thing is None or isinstance(thing, (int, float, str, bytes, type)):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    if isinstance(thing, Mapping):
        yield from (tensor for value in thing.values() for tensor in tensors(value, seen))
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        yield from (tensor for value in thing for tensor in tensors(value, seen))
    for place in attributes(thing):
        yield from (tensor for _, value in place.inside() for tensor in tensors(value, seen))


def example_count(batch: object) -> int | None:
    """Number of examples: ``num_graphs`` of graphs, else the first axis of the first tensor, else ``len``."""
    for leaf in pytree.tree_leaves(batch):
        graphs = getattr(leaf, "num_graphs", None)  # a batch of graphs has tensors of nodes
        if isinstance(graphs, int):
            return graphs
        for tensor in tensors(leaf):
            if tensor.ndim > 0:
                return tensor.shape[0]
    try:
        return None if isinstance(batch, (Mapping, list, tuple)) else len(batch)  # type: ignore[arg-type]
    except TypeError:
        return None


def first_examples(batch: B, count: int) -> B:
    """The first examples of a batch: every tensor is cut along its first axis.

    Raises:
        ValueError: if it cannot be seen what an example is: tensors of different lengths, or objects.
    """
    total = example_count(batch)
    if total is None or total <= count:
        return batch
    try:
        return pytree.tree_map(lambda leaf: _cut(leaf, total, slice(count)), batch)  # type: ignore[no-any-return]
    except LookupError as error:
        raise ValueError(
            f"probe_size wants the first {count} of {total} examples of a batch, but {error}. Leave probe_size=None "
            "(one whole batch), or collate batches whose tensors all begin with the axis of examples."
        ) from None


def parts_of(batch: B, parts: int) -> list[B]:
    """A batch in so many parts of consecutive examples, as views; in fewer if it has fewer examples.

    Args:
        batch: of any type.
        parts: how many; their sizes differ by one at most, and the last is among the smallest.

    Raises:
        ValueError: if it cannot be seen what an example is: tensors of different lengths, or objects.
    """
    total = example_count(batch) or 1
    parts = min(parts, total)
    if parts == 1:
        return [batch]
    bounds = [total - total * i // parts for i in range(parts, -1, -1)]
    cuts = [slice(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    try:
        return [pytree.tree_map(partial(_cut, total=total, part=part), batch) for part in cuts]
    except LookupError as error:
        raise ValueError(
            f"parts={parts} cuts a batch of {total} examples, but {error}. Take parts=1 and a probe_size of several "
            "whole batches, or collate batches whose tensors all begin with the axis of examples."
        ) from None


def _cut(leaf: object, total: int, part: slice) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.ndim and leaf.shape[0] != total:
            raise LookupError(f"it holds a tensor of shape {tuple(leaf.shape)}")
        return leaf[part] if leaf.ndim else leaf
    changed: Any = copy.copy(leaf)
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        for field in dataclasses.fields(leaf):
            object.__setattr__(changed, field.name, _cut(getattr(leaf, field.name), total, part))
        return changed
    if isinstance(leaf, MutableMapping):
        for key in list(leaf):
            changed[key] = _cut(leaf[key], total, part)
        return changed
    if not any(True for _ in tensors(leaf)):
        return leaf
    raise LookupError(f"an object of type {type(leaf).__name__} cannot be cut")
