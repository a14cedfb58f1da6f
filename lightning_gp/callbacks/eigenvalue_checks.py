"""What ``HessianEigenvalues`` refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_gp import checks
from lightning_gp.callbacks.curvatures import couples
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.update_curvature import UpdateJacobian
from lightning_gp.types import Parameters


def check_arguments(k: int, objective: str, tol: float, split: str, products: str, max_products: int | None) -> None:
    """Refuses arguments out of range, each by itself.

    Raises:
        TypeError: if one is of the wrong type.
        ValueError: naming it and what is allowed.
    """
    checks.whole(1, k=k)
    checks.optional_whole(1, max_products=max_products)
    checks.choice(("loss", "training"), objective=objective)
    checks.choice(("query", "support"), split=split)
    checks.choice(("exact", "differences"), products=products)
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 1e-3.")
    if max_products is not None and max_products < k:
        raise ValueError(f"max_products={max_products!r} must be at least k={k}, or None.")


def check_combination(
    objective: str,
    split: str,
    products: str,
    preconditioned: bool,
    episodes: int | None,
    extras: Mapping[str, bool],
) -> None:
    """Refuses arguments that do not go together.

    Args:
        objective: what is differentiated.
        split: of which sets.
        products: how.
        preconditioned: whether by the metric of the optimizer.
        episodes: of an evaluation.
        extras: by the name of the argument, whether it asks for more than the leading eigenvalues.

    Raises:
        ValueError: naming them.
    """
    asked = {"objective": objective != "loss", "preconditioned": preconditioned, **extras}
    names = [name for name, wanted in asked.items() if wanted]
    if products == "differences" and names:
        raise ValueError(
            f"products='differences' measures the eigenvalues of the loss alone, without {', '.join(names)}. Leave "
            "that out, or take products='exact'."
        )
    if objective == "training" and split != "query" and not extras["per_environment"]:
        raise ValueError("objective='training' has both sets in it; leave split='query', or take objective='loss'.")
    if preconditioned and episodes is not None:
        raise ValueError(
            "preconditioned=True needs the optimizer, which trainer.validate and trainer.test do not have. Give "
            "episodes=... to a HessianEigenvalues without it, with a prefix of its own."
        )


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


def check_environments(loss: AnyLoss) -> None:
    """Refuses ``per_environment`` where there are none.

    Raises:
        ValueError: naming the module.
    """
    if not isinstance(loss, EnvironmentLoss):
        raise ValueError(
            f"per_environment=True: {type(loss.module).__name__} has no environment_losses, or loss_fn hides them. "
            "Leave it out, or let the module define environment_losses(parameters, environments, split)."
        )


def check_product(loss: AnyLoss, function: Callable[[Parameters], Tensor]) -> None:
    """Computes one Hessian-vector product, and refuses what has no Hessian.

    Args:
        loss: the module's losses, by whose parameters it is differentiated.
        function: the scalar that is measured.

    Raises:
        ValueError: if its gradient is that of a first-order algorithm.
        RuntimeError: if an operation has no double backward.
    """
    with plain_kernels(second_order=True):
        product = UpdateJacobian(function, loss.parameters())
    if not product.symmetric:
        raise ValueError(
            f"objective='training': {type(loss.module).__name__} holds constant a part of what it differentiates "
            "(it is a first-order algorithm), so its update is no gradient and has no Hessian. LearningRateBounds "
            "measures the Jacobian of the update; here use objective='loss'."
        )
    with plain_kernels(second_order=True):  # checkpointed layers are computed again
        product(product.update)
