"""What a network gives and a loss takes: tensors of shapes that fit, in every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits)
ELEMENTWISE_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss)


def tensor_of(outputs: Any, network: nn.Module) -> Tensor:
    """The one tensor that a network gives: its output itself, or the ``logits`` of a dict or ``ModelOutput``.

    Raises:
        TypeError: if there is no such tensor; the message names ``predict``.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"{type(network).__name__} returns a {type(outputs).__name__}, where one tensor of outputs (K, ...) is needed. "
        "Override predict(parameters, x) to pick it, such as "
        "torch.func.functional_call(self.network, parameters, (x,))[0]."
    )


def check_shapes(outputs: Tensor, targets: Tensor, criterion: Any) -> None:
    """Refuses outputs and targets that a loss would broadcast against each other; costs nothing where they are equal.

    Args:
        outputs: of the network on one environment, (K, ...).
        targets: (K, ...).
        criterion: for the elementwise losses of torch both must be equal; for any other one they must not differ by
            axes of length 1 alone, such as (K, 1) and (K,).

    Raises:
        ValueError: naming both shapes.
    """
    if outputs.shape == targets.shape:
        return
    elementwise = criterion in ELEMENTWISE or isinstance(criterion, ELEMENTWISE_MODULES)
    if elementwise or outputs.numel() == targets.numel():
        raise ValueError(
            f"The network's output has shape {tuple(outputs.shape)} but the targets have {tuple(targets.shape)}; they "
            "must be equal, or the loss would broadcast them against each other. Give one of them another axis "
            "(unsqueeze) or take one away (squeeze), or for class labels build the network with one output per class."
        )
