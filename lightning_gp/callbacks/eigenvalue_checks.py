"""What ``HessianEigenvalues`` refuses."""

from __future__ import annotations

from lightning_gp.callbacks.curvatures import couples
from lightning_gp.callbacks.losses import AnyLoss


def check_k(loss: AnyLoss, k: int) -> None:
    """Refuses more eigenvalues than there are parameters.

    Raises:
        ValueError: naming their number.
    """
    size = sum(parameter.numel() for parameter in loss.parameters().values())
    if size < k:
        raise ValueError(
            f"k={k} eigenvalues were asked for, but {type(loss.module).__name__} has only {size} trainable "
            f"parameters; choose k <= {size}."
        )


def check_evaluation(loss: AnyLoss, objective: str, k: int) -> None:
    """Refuses objectives that have no value for a single episode, and too many eigenvalues.

    Raises:
        ValueError: naming the reason.
    """
    if objective == "training" and couples(loss):
        raise ValueError(
            f"objective='training': the objective of {type(loss.module).__name__} couples the environments of a "
            "batch, so it has no value for a single episode. Use objective='loss', or leave episodes=None."
        )
    check_k(loss, k)


def refuse_exact_only(**asked: bool) -> None:
    """Refuses what needs exact products.

    Args:
        **asked: by the name of the argument, whether it is asked for.

    Raises:
        ValueError: naming it.
    """
    names = [name for name, wanted in asked.items() if wanted]
    if names:
        raise ValueError(
            f"products='differences' measures the eigenvalues of the loss alone, without {', '.join(names)}. Leave "
            "that out, or take products='exact'."
        )
