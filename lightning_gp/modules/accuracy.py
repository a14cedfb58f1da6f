"""The share of right answers, for the targets and losses that have one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def is_binary(criterion: Any) -> bool:
    """Whether ``criterion`` is torch's binary cross-entropy with logits."""
    return criterion is F.binary_cross_entropy_with_logits or isinstance(criterion, nn.BCEWithLogitsLoss)


def accuracy(predictions: Tensor, targets: Tensor, criterion: Any) -> dict[str, Tensor]:
    """``{"accuracy": share of right answers}`` of one environment; empty for regression.

    Args:
        predictions: logits (K, classes), or (K, ...) of the same shape as the targets for the binary cross-entropy.
        targets: class numbers (K,), or 0. and 1. for the binary cross-entropy.
        criterion: the loss; tells the two apart from regression.
    """
    if is_binary(criterion):
        return {"accuracy": ((predictions > 0) == (targets > 0.5)).float().mean()}
    if targets.is_floating_point() or predictions.ndim != targets.ndim + 1:
        return {}  # numbers to regress on, also where they are whole
    return {"accuracy": (predictions.argmax(1) == targets).float().mean()}
