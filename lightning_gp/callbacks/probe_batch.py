"""The fixed batch on which a probe measures: taken from the first training batches, kept, and saved in checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_gp.callbacks.batches import copied, example_count, first_examples, tensors
from lightning_gp.environments import Environments, as_batches, count_of

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
        indices: of each, the index that it had in its epoch.
    """

    def __init__(self, size: int | None = None, by_environment: bool = False, rank: int = 0, world: int = 1) -> None:
        self.size = None if size is None else -(-size // world)
        self.by_environment, self.rank, self.world = by_environment, rank, world
        self.batches: list[Any] = []
        self.indices: list[int] = []
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

        Raises:
            ValueError: if the batch cannot be copied, or not be cut to the size.
        """
        if self._saved is not None:
            self._restore(as_batches(batch)[0] if self.by_environment else batch)
        another_epoch = any(epoch != key[0] for epoch, _ in self._seen)
        if self._sealed or another_epoch or self.complete or key in self._seen:
            return
        self._seen.add(key)
        if self.by_environment:
            parts = self._environments(batch)
        else:
            parts = [batch if self.size is None else first_examples(batch, self.size - self._collected())]
        self.batches += [copied(part) for part in parts]
        self.indices += [key[1]] * len(parts)

    def withdraw(self, key: tuple[int, int]) -> None:
        """Gives back the last batch, which training has passed over."""
        if key in self._seen and not self._sealed and self.indices[-1:] == [key[1]]:
            kept = [i for i, index in enumerate(self.indices) if index != key[1]]
            self.batches, self.indices = [self.batches[i] for i in kept], [self.indices[i] for i in kept]

    def restore(self, device: torch.device) -> None:
        """Puts a loaded batch of environments in place; of other batches, only a training batch shows the structure."""
        if self._saved is not None and self.by_environment:
            x = torch.empty(0, device=device)
            self._restore(Environments((x, x), (x, x) if len(self._saved[0]) == 4 else None))

    def _restore(self, example: object) -> None:
        self.batches = _restored(self._saved or [], copied(example))
        self.indices = list(self._loaded.get("indices", [[]] * self.world)[self.rank]) or [0] * len(self.batches)
        self._saved, self._sealed = None, bool(self.batches) and self._state is not None
        if not self.batches:
            self._state, self._seen, self.indices = None, set(), []

    def like(self, other: ProbeBatch) -> bool:
        """Whether ``other`` would collect the same."""
        return (self.size, self.by_environment) == (other.size, other.by_environment)

    def state(self) -> dict[str, Any]:
        """Plain tensors, lists and numbers that ``load`` understands; empty if too large.

        Before ``gather``, that is what has been collected so far. With several processes all of them have to call it,
        as Lightning does where it saves a checkpoint.
        """
        if self._saved is not None:
            return self._loaded
        if self._state is not None:
            return self._state
        everyone = self._everyone()
        return {**everyone, "seen": [list(key) for key in sorted(self._seen)]} if everyone else {}

    def gather(self) -> None:
        """Ends collecting; every process calls it after a measurement. What ``state`` needs comes from all of them."""
        self._sealed = True
        if self._state is None:
            self._state = self._everyone()

    def _everyone(self) -> dict[str, Any]:
        everyone: list[Any] = [([_leaves(batch) for batch in self.batches], self.indices)]
        if self.world > 1:
            own = pytree.tree_map(_to_cpu, everyone[0])
            everyone = [None] * self.world
            torch.distributed.all_gather_object(everyone, own)
        ranks, indices = (list(each) for each in zip(*everyone, strict=True))
        whole = all(leaves is not None for rank in ranks for leaves in rank)
        return {"ranks": ranks, "indices": indices} if whole and _small(ranks) else {}

    def load(self, state: dict[str, Any]) -> None:
        """Puts a saved batch in the place of the next training batch, if the number of processes is the same."""
        ranks = state.get("ranks", [])
        if len(ranks) == self.world and ranks[self.rank]:
            self._saved, self._loaded = ranks[self.rank], state
            self._seen = {(epoch, index) for epoch, index in state.get("seen", [])}
            self._state = None if "seen" in state else state

    def _collected(self) -> int:
        count = count_of if self.by_environment else example_count
        return sum(count(batch) or 1 for batch in self.batches)

    def _environments(self, batch: Any) -> list[Environments]:
        parts: list[Environments] = []
        collected = self._collected()
        for environments in as_batches(batch):
            wanted = count_of(environments) if self.size is None else self.size - collected
            if wanted > 0:
                parts.append(next(environments.chunks(wanted)))
                collected += count_of(parts[-1])
        return parts


def saved_vector(vector: Tensor | None) -> Tensor | None:
    """A vector for a warm start as checkpoints hold it: None where there is none, or it is too large."""
    return vector if vector is not None and vector.nbytes <= MAX_SAVED_BYTES else None


def _to_cpu(leaf: object) -> object:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _small(leaves: list[Any]) -> bool:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor)) <= MAX_SAVED_BYTES


def _leaves(batch: object) -> list[Any] | None:
    """What ``torch.load(weights_only=True)`` reads; None for a batch with tensors in objects, which it does not."""
    leaves = pytree.tree_leaves(batch)
    plain = [leaf is None or isinstance(leaf, (Tensor, str, int, float, bool)) for leaf in leaves]
    if any(not each and next(tensors(leaf), None) is not None for each, leaf in zip(plain, leaves, strict=True)):
        return None
    return [leaf if each else None for each, leaf in zip(plain, leaves, strict=True)]


def _restored(saved: list[list[Any]], example: object) -> list[Any]:
    leaves, structure = pytree.tree_flatten(example)
    if any(len(each) != len(leaves) for each in saved):
        warnings.warn(
            "The probe batch in the checkpoint has another structure than training batches now; a new one is taken.",
            stacklevel=2,
        )
        return []

    def placed(old: object, new: object) -> object:
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            return old.to(new.device)
        return new if old is None else old

    return [
        pytree.tree_unflatten([placed(*pair) for pair in zip(each, leaves, strict=True)], structure) for each in saved
    ]
