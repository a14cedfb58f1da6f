"""How much memory the tensors of a computation take at most, on any machine and without a fresh process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def peak_tensor_bytes(call: Callable[[], object]) -> int:
    """Bytes of the tensors that ``call`` makes, at the moment when they are most.

    Storages count from the operation that makes them until they are freed, each once, whatever views it has; those that
    were there before do not count. The number depends on the computation alone, not on the allocator; scratch space
    inside a kernel is not seen. ``call`` is slower than otherwise.

    Args:
        call: computes; what it returns is dropped.

    Example:
        >>> import torch
        >>> peak_tensor_bytes(lambda: (torch.zeros(100) + 1).sum())  # two times 100 floats
        800
    """
    counter = _Counter()
    with counter:
        call()
    return counter.peak


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        for each in _tensors(outputs):
            storage = each.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.alive:
                self._add(storage)
        return outputs

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(tree) if isinstance(each, Tensor)]
