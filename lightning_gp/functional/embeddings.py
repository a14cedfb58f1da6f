"""Embeddings by operations that are right under vmap and can be differentiated twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp.functional.norms import Replaced


class DenseEmbeddings(Replaced):
    """Inside, ``F.embedding`` has dense gradients, none of them by its padding row.

    With weights that are stacked for vmap, torch (2.14) forgets ``padding_idx`` in the backward pass, and sparse
    gradients cannot be differentiated again. Embeddings with ``max_norm``, which write into their weights, are refused.

    Example:
        >>> weight = torch.ones(3, 2, requires_grad=True)
        >>> with DenseEmbeddings():
        ...     F.embedding(torch.tensor([0, 1, 1]), weight, padding_idx=0).sum().backward()
        >>> weight.grad[:, 0].tolist()
        [0.0, 2.0, 0.0]
    """

    def __init__(self) -> None:
        super().__init__({F.embedding: _embedding})


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None:
        raise ValueError(
            f"An embedding with max_norm={max_norm} writes into its weights when it runs, which all environments share "
            "and the inner loop replaces. Leave max_norm out, and normalise what the embedding gives."
        )
    out = F.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq)
    if padding_idx is None:
        return out
    padding = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return torch.where(padding, out.detach(), out)
