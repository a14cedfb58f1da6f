"""Attention by operations that autograd can differentiate twice and vmap can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
