"""What the callbacks on curvature share: the optimizer of a module, and the curvature of each environment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss
from lightning_gp.callbacks.measurement import Measurement
from lightning_gp.callbacks.probe_batch import ProbeBatch
from lightning_gp.environments import Environments
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.functional.curvature_by_environment import environment_curvatures
from lightning_gp.functional.differences import Measured
from lightning_gp.functional.hessian_product import hessian_vector_product
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.lanczos import Eigenpairs, leading_eigenpairs
from lightning_gp.functional.starts import search_start
from lightning_gp.functional.update_curvature import preconditioned
from lightning_gp.theory.optimizers import update_rule
from lightning_gp.types import Parameters, Split


def optimizer_of(module: LightningModule, position: int | None = None) -> Optimizer:
    """The optimizer that minimises the measured loss.

    Args:
        module: a LightningModule in training.
        position: among the Trainer's optimizers; None for the only one.

    Raises:
        ValueError: if there are several and none is named, or there is no such.
    """
    optimizers = module.trainer.optimizers
    if position is None and len(optimizers) == 1:
        only: Optimizer = optimizers[0]
        return only
    if position is None or position >= len(optimizers):
        raise ValueError(
            f"optimizer={position}: {type(module).__name__} has {len(optimizers)} optimizers. Name the one that "
            "minimises the measured loss by its position, counted from 0, and give each a callback of its own, with "
            "optimizer=, loss_fn= and prefix=."
        )
    chosen: Optimizer = optimizers[position]
    return chosen


def couples(loss: AnyLoss) -> bool:
    """Whether the training objective is that of a whole batch, and no mean over its environments."""
    return isinstance(loss, EnvironmentLoss) and loss.couples_environments


def check_coupled(loss: AnyLoss, batch: ProbeBatch) -> None:
    """Refuses the training objective of a probe batch that cannot be computed from its environments at once.

    Args:
        loss: the module's losses.
        batch: of the probe.

    Raises:
        ValueError: if a coupled objective meets several processes, or environments of different sizes.
    """
    module: Any = loss.module
    cut = len(set(batch.indices)) < len(batch.indices)  # a batch of several sizes is kept in parts
    if couples(loss) and (cut or module.trainer.world_size > 1):
        raise ValueError(
            f"The objective of {type(module).__name__} couples the environments of a batch. It is measured in one "
            "process, on environments of equal size. Leave this callback out here, or measure "
            "loss_fn=lambda module, batch: module.training_loss(batch)."
        )


def curvatures_by_environment(
    measurement: Measurement, split: Split, tol: float, names: Collection[str] | None = None
) -> Tensor:
    """λ_max of the loss of each environment of all processes, (E,), float64.

    Args:
        measurement: of a module with environments.
        split: whose loss.
        tol: relative error allowed.
        names: of the parameters to differentiate by; None for all that are trained.
    """
    loss, ranks = measurement.loss, measurement.ranks
    assert isinstance(loss, EnvironmentLoss)
    trained = loss.parameters().keys()
    chosen = trained if names is None else trained & set(names)
    each = []
    for piece, share in zip(measurement.pieces, measurement.shares, strict=True):

        def losses(theta: Parameters, one: Environments, share: float = share) -> Tensor:
            return share * loss.losses(theta, one, split)

        reduce = ranks.sum if measurement.shared else None
        with plain_kernels(second_order=True):
            each.append(environment_curvatures(losses, loss.complete({}), piece, chosen, tol=tol, reduce=reduce))
    return measurement.all_environments(torch.cat(each).to(ranks.device, ranks.dtype))


def environment_statistics(measurement: Measurement, split: Split, tol: float) -> dict[str, float]:
    """Largest, mean and standard deviation (of the environments at hand) of ``curvatures_by_environment``."""
    values = curvatures_by_environment(measurement, split, tol)
    return {
        "curvature/environment_max": float(values.max()),
        "curvature/environment_mean": float(values.mean()),
        "curvature/environment_std": float(values.std(correction=0)),
    }


def block_curvatures(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    blocks: Mapping[str, Collection[str]],
    tol: float,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The largest eigenvalue of diagonal blocks of a Hessian, by key.

    Args:
        loss: of all parameters.
        parameters: θ, (*shape).
        blocks: names of the parameters of each.
        tol: relative error allowed.
        reduce: sums over processes.
    """
    found: dict[str, float] = {}
    for name, members in blocks.items():
        block = {each: parameters[each] for each in members}
        others = {each: value for each, value in parameters.items() if each not in block}
        of_block = partial(_with_others, loss, others)
        pairs = hessian_eigenvalues(of_block, block, 1, tol, reduce=reduce)
        found[f"curvature/eigenvalue_1/{name}"] = float(pairs.values[0])
    return found


def _with_others(loss: Callable[[Parameters], Tensor], others: Parameters, block: Parameters) -> Tensor:
    return loss({**others, **block})


def leading_pairs(
    loss: Callable[[Parameters], Tensor],
    measurement: Measurement,
    scaled: bool,
    *,
    k: int,
    tol: float,
    max_products: int | None,
    start: Tensor | None,
) -> Eigenpairs:
    """The k largest eigenvalues of the Hessian of a loss.

    Args:
        loss: this process's share.
        measurement: whose parameters and processes.
        scaled: of P^{-1/2}(∇²L + W)P^{-1/2} instead, by the Trainer's optimizer.
        k: their number.
        tol: relative error allowed.
        max_products: products allowed.
        start: of a warm search, or None.
    """
    parameters, total = measurement.loss.parameters(), measurement.ranks.sum
    if not scaled:
        return hessian_eigenvalues(loss, parameters, k, tol, initial=start, max_products=max_products, reduce=total)
    rule = update_rule(optimizer_of(measurement.loss.module))
    product = hessian_vector_product(loss, parameters, reduce=total)
    operator = preconditioned(
        product, rule.root_scales(parameters).to(product.gradient), rule.coupled_decay(parameters)
    )
    return leading_eigenpairs(
        operator,
        search_start(product.gradient, start),
        k,
        tol,
        max_products=max_products,
        random_share=1.0 if start is None else None,
    )


def values_of(prefix: str, found: Eigenpairs | Measured) -> dict[str, float]:
    """Eigenvalues, their residuals, and what the search has cost, by key.

    Args:
        prefix: of the keys.
        found: by a search.
    """
    values: dict[str, float] = {}
    for i, (value, residual) in enumerate(zip(found.values, found.residuals, strict=True), start=1):
        values[f"{prefix}/eigenvalue_{i}"] = float(value)
        values[f"{prefix}/residual_{i}"] = float(residual)
    return {**values, f"{prefix}/converged": float(found.converged), f"{prefix}/products": float(found.products)}
