"""The fixed batch on which a probe measures: taken from the first training batches, kept, and saved in checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_gp.callbacks.losses import copied, leading_size
from lightning_gp.environments import Environments, as_batches, chunks_of, count_of

MAX_SAVED_BYTES = 64 * 2**20
"""A probe batch, or a vector for a warm start, that is larger is not written into checkpoints."""


class ProbeBatch:
    """Collects copies of training batches until it holds ``size`` environments or examples.

    It stops at the first measurement or at the end of the epoch, whichever is first: with full-batch training the same
    examples would come again.

    Args:
        size: how many to keep over all processes; None for one whole batch of each.
        by_environment: whether batches are ``Environments``.
        rank: this process.
        world: number of processes.

    Attributes:
        batches: what has been collected.
    """

    def __init__(self, size: int | None = None, by_environment: bool = False, rank: int = 0, world: int = 1) -> None:
        self.size = None if size is None else -(-size // world)
        self.by_environment, self.rank, self.world = by_environment, rank, world
        self.batches: list[Any] = []
        self._sealed = False
        self._seen: set[tuple[int, int]] = set()
        self._saved: list[list[Any]] | None = None
        self._state: dict[str, Any] | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether it wants no more batches."""
        return bool(self.batches) and (self.size is None or self._collected() >= self.size)

    def offer(self, batch: Any, key: tuple[int, int]) -> None:
        """Takes what it still needs of a training batch.

        Args:
            batch: on its device. It is copied.
            key: (epoch, batch index); a batch that is offered twice is taken once.
        """
        if self._saved is not None:
            self._restore(as_batches(batch)[0] if self.by_environment else batch)
        another_epoch = any(epoch != key[0] for epoch, _ in self._seen)
        if self._sealed or another_epoch or self.complete or key in self._seen:
            return
        self._seen.add(key)
        parts = self._environments(batch) if self.by_environment else [_first(batch, self.size, self._collected())]
        self.batches += [pytree.tree_map(copied, part) for part in parts]

    def restore(self, device: torch.device) -> None:
        """Puts a loaded batch of environments in place; of other batches, only a training batch shows the structure."""
        if self._saved is not None and self.by_environment:
            x = torch.empty(0, device=device)
            self._restore(Environments((x, x), (x, x) if len(self._saved[0]) == 4 else None))

    def _restore(self, example: Any) -> None:
        self.batches = _restored(self._saved or [], pytree.tree_map(copied, example))
        self._saved, self._sealed = None, bool(self.batches) and self._state is not None
        if not self.batches:
            self._state, self._seen = None, set()

    def like(self, other: ProbeBatch) -> bool:
        """Whether ``other`` would collect the same."""
        return (self.size, self.by_environment) == (other.size, other.by_environment)

    def state(self) -> dict[str, Any]:
        """Plain tensors, lists and numbers that ``load`` understands; empty if too large.

        Before ``gather``, that is what has been collected so far; with several processes it is empty until then.
        """
        if self._saved is not None:
            return self._loaded
        if self._state is not None or self.world > 1:
            return self._state or {}
        own = self._savable()
        return {"ranks": [own], "seen": [list(key) for key in sorted(self._seen)]} if _small(own) else {}

    def gather(self) -> None:
        """Ends collecting; every process calls it after a measurement. What ``state`` needs comes from all of them."""
        self._sealed = True
        if self._state is not None:
            return
        own = self._savable()
        everyone: list[Any] = [own]
        if self.world > 1:
            everyone = [None] * self.world
            torch.distributed.all_gather_object(everyone, pytree.tree_map(_to_cpu, own))
        self._state = {"ranks": everyone} if _small(everyone) else {}

    def load(self, state: dict[str, Any]) -> None:
        """Puts a saved batch in the place of the next training batch, if the number of processes is the same."""
        ranks = state.get("ranks", [])
        if len(ranks) == self.world and ranks[self.rank]:
            self._saved, self._loaded = ranks[self.rank], state
            self._seen = {(epoch, index) for epoch, index in state.get("seen", [])}
            self._state = None if "seen" in state else state

    def _savable(self) -> list[list[Any]]:
        return [[_savable(leaf) for leaf in pytree.tree_leaves(batch)] for batch in self.batches]

    def _collected(self) -> int:
        if self.by_environment:
            return sum(count_of(batch) for batch in self.batches)
        return sum(leading_size(batch) or 1 for batch in self.batches)

    def _environments(self, batch: Any) -> list[Any]:
        parts, collected = [], self._collected()
        for environments in as_batches(batch):
            wanted = count_of(environments) if self.size is None else self.size - collected
            if wanted > 0:
                parts.append(next(chunks_of(environments, wanted)))
                collected += count_of(parts[-1])
        return parts


def _first(batch: Any, size: int | None, collected: int) -> Any:
    """The examples of a batch that are still wanted: every tensor whose first axis is the batch's is cut."""
    length = leading_size(batch)
    if size is None or length is None or length <= size - collected:
        return batch

    def cut(leaf: Any) -> Any:
        whole = not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != length
        return leaf if whole else leaf[: size - collected]

    return pytree.tree_map(cut, batch)


def _to_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _small(leaves: list[Any]) -> bool:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor)) <= MAX_SAVED_BYTES


def _savable(leaf: Any) -> Any:
    """Only what ``torch.load(weights_only=True)`` reads; anything else is taken from a new batch when resuming."""
    return leaf if leaf is None or isinstance(leaf, (Tensor, str, int, float, bool)) else None


def _restored(saved: list[list[Any]], example: Any) -> list[Any]:
    leaves, structure = pytree.tree_flatten(example)
    if any(len(each) != len(leaves) for each in saved):
        warnings.warn(
            "The probe batch in the checkpoint has another structure than training batches now; a new one is taken.",
            stacklevel=2,
        )
        return []

    def placed(old: Any, new: Any) -> Any:
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            return old.to(new.device)
        return new if old is None else old

    return [
        pytree.tree_unflatten([placed(*pair) for pair in zip(each, leaves, strict=True)], structure) for each in saved
    ]
