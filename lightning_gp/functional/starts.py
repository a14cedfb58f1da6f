"""Where a search for eigenvectors starts: noise, with a hint blended in."""

from __future__ import annotations

import torch
from torch import Tensor

WARM_WEIGHT = 3.0  # of earlier vectors; that of the noise they are blended into is 1
# The i-th of the last vectors counts i^(4/3): later pairs converge last, so the start leans on them more.
WARM_POWER = 4 / 3


def search_start(like: Tensor, hint: Tensor | None = None, seed: int = 0, weight: float = WARM_WEIGHT) -> Tensor:
    """Noise, or a hint blended into it, so that nothing the hint is blind to is out of reach.

    Args:
        like: of the shape, dtype and device of the start.
        hint: a vector of norm 1, such as an earlier eigenvector, or None.
        seed: of the noise; the global random state is left alone.
        weight: of the hint; that of the noise is 1.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    start = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    start /= start.norm()
    if hint is not None:
        start.add_(hint.to(start), alpha=weight)
    return start


def warm_start(vectors: Tensor) -> Tensor:
    """The one vector, Σ_i i^(4/3) v_i, that a search makes of earlier eigenvectors given to it as `initial`.

    Args:
        vectors: shape (m, size), in the order of their eigenvalues.

    Returns:
        Shape (size,); it serves as `initial` in their place.

    Example:
        >>> warm_start(torch.eye(2))
        tensor([1.0000, 2.5198])
    """
    weights = torch.arange(1, len(vectors) + 1, dtype=vectors.dtype, device=vectors.device) ** WARM_POWER
    return weights @ vectors
