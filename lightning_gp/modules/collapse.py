"""Signs that a network has collapsed: it gives every example the same answer, so any two views of it agree.

[G20] J.-B. Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020.
[S17] J. Snell, K. Swersky, R. Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def output_variance(logits: Tensor) -> Tensor:
    """Σ_c Var_x s_c(x), the variance over examples of the class probabilities s = softmax(logits).

    Args:
        logits: (Q, C).

    Returns:
        A scalar in [0, 1); 0 if every example gets the same answer.

    Example:
        >>> output_variance(torch.ones(4, 3)).item()
        0.0
    """
    return logits.softmax(1).var(0, unbiased=False).sum()


def prototype_accuracy(support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], classes: int) -> Tensor:
    """Share of query examples whose nearest class mean of the support set is that of their own class [S17].

    Args:
        support: features (K, D) and class numbers (K,).
        query: features (Q, D) and class numbers (Q,).
        classes: C, an upper bound of the class numbers.

    Returns:
        A scalar; about 1/C for features that say nothing. Classes without a support example are never chosen.

    Example:
        >>> features, labels = torch.eye(3), torch.arange(3)
        >>> prototype_accuracy((features, labels), (features + 0.1, labels), classes=3).item()
        1.0
    """
    features, labels = support
    members = F.one_hot(labels, classes).to(features.dtype)
    counts = members.sum(0)
    prototypes = (members.T @ features) / counts.clamp(min=1).unsqueeze(1)
    distances = (query[0].unsqueeze(1) - prototypes).square().sum(2)
    nearest = distances.masked_fill(counts == 0, torch.inf).argmin(1)
    return (nearest == query[1]).to(features.dtype).mean()
