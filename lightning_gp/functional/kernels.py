"""How layers are computed where they are differentiated twice, or mapped: attention, compiled code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def plain_kernels(second_order: bool = False) -> Iterator[None]:
    """No inference fast path of ``nn.TransformerEncoder``; for a second derivative, attention's ``MATH`` kernel.

    Inside vmap tensors say that they need no gradient, which would start the fast path; the other attention kernels
    have no double backward. ``MATH`` keeps the (Q, K) matrix of weights of every head in memory.

    Args:
        second_order: whether what is recorded inside will be differentiated twice.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def eager_code() -> AbstractContextManager[Any]:
    """Inside, what ``torch.compile`` and ``module.compile()`` have compiled runs as it is written.

    Compiled code has no second derivative, and its buffers are given away in the first backward pass. Before torch 2.6,
    which cannot do this, compiled code stays compiled.
    """
    # Whoever has compiled something has imported this, which takes a second.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
