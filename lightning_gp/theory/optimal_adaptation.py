"""The inner rate that is best for one step of adaptation, from the features of a linear model or of a network.

Sources:
    [Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.

Environments are linear problems L(w) = (1/K)‖Φ(w − a)‖² with the same distribution of features Φ, and optima a of mean
zero and covariance σ²I. With many of them MAML learns w = 0, and one inner step of rate α leaves

    E L(w_1) = (1/K) E‖Φ(I − αH) a‖² = (σ²/2) tr E[H − 2αH² + α²H³],        H = (2/K) ΦᵀΦ,

the Hessian. It is least at α = tr E[H²] / tr E[H³] = K tr E[(ΦᵀΦ)²] / (2 tr E[(ΦᵀΦ)³]) [Z22, Theorem 1].

A network is linear in its parameters near θ_0, with the Jacobian as features (``functional.ntk``) [Z22, Fig. 1]. For
another loss than the squared error, H is the Gauss-Newton matrix JᵀAJ with A the second derivative of the loss by the
outputs; [Z22] proves nothing about that case. The traces need only n×n matrices, n the smaller side of Φ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gp.functional.ntk import Predict, ntk_kernels
from lightning_gp.types import Parameters


def optimal_adaptation_lr(features: Tensor | np.ndarray[Any, Any]) -> Any:
    """α*_lim(K) = K tr E[(ΦᵀΦ)²] / (2 tr E[(ΦᵀΦ)³]), for L = (1/K)‖Φw − y‖² [Z22, Theorem 1].

    It is tr E[H²] / tr E[H³] of that loss. Where the loss has another factor, so has H: for L = ½‖Φw − y‖² multiply
    the result by 2/K.

    Args:
        features: Φ, (tasks, K, d); E is the mean over tasks.

    Returns:
        A scalar, float64, of the kind of ``features``.

    Raises:
        ValueError: if the shape is not (tasks, K, d), something in it is not finite, or all of it is 0.

    Example:
        >>> optimal_adaptation_lr(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))  # ΦᵀΦ = diag(4, 1), K = 2
        tensor(0.2615, dtype=torch.float64)
    """
    values = torch.as_tensor(features).double()
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"features have shape {tuple(values.shape)}; it must be (tasks, K, d), none of them 0.")
    K, d = values.shape[1:]
    gram = values @ values.mT if d >= K else values.mT @ values
    result = _ratio_of_traces((2 / K) * gram)
    return result.numpy() if isinstance(features, np.ndarray) else result


def optimal_adaptation_lr_from_kernels(kernels: Tensor, curvatures: Tensor | None = None) -> Tensor:
    """α = tr E[H²] / tr E[H³] with tr Hⁿ = tr (AΘ)ⁿ, from kernels Θ = ΦΦᵀ and the loss's curvature A in the outputs.

    Args:
        kernels: Θ, (tasks, R, R).
        curvatures: A = ∂²L/∂f², (tasks, R, R), positive semi-definite. None for the mean squared error over all R
            outputs, A = (2/R)I.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: if the shapes do not fit, something is not finite, or H is 0.

    Example:
        >>> optimal_adaptation_lr_from_kernels(torch.tensor([[[4.0, 0.0], [0.0, 1.0]]]))
        tensor(0.2615, dtype=torch.float64)
    """
    if kernels.ndim != 3 or kernels.shape[1] != kernels.shape[2] or 0 in kernels.shape:
        raise ValueError(f"kernels have shape {tuple(kernels.shape)}; it must be (tasks, R, R), none of them 0.")
    if curvatures is None:
        return _ratio_of_traces(kernels.double() * (2 / kernels.shape[-1]))
    if curvatures.shape != kernels.shape:
        raise ValueError(f"curvatures have shape {tuple(curvatures.shape)}, kernels {tuple(kernels.shape)}: give one.")
    return _ratio_of_traces(curvatures.double() @ kernels.double())


def network_adaptation_lr(predict: Predict, criterion: Any, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """The estimate of [Z22] for a network at θ_0, through its neural tangent kernel.

    With several outputs per example, every output is a row of Φ, and the criterion decides what they are divided by:
    ``F.mse_loss`` divides by all R = K · outputs of them.

    Args:
        predict: ``predict(parameters, x)``, the outputs of one environment.
        criterion: ``criterion(outputs, y)``, a scalar, convex in the outputs.
        parameters: θ_0, what the inner loop adapts.
        x: inputs (E, K, *feature) of E environments.
        y: targets (E, K, *target).

    Returns:
        A scalar, float64.

    Raises:
        ValueError: as for ``optimal_adaptation_lr_from_kernels``.

    Example:
        >>> x = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        >>> network_adaptation_lr(lambda p, x: x @ p["w"], torch.nn.functional.mse_loss, {"w": torch.ones(2)}, x,
        ...                       torch.zeros(1, 2))
        tensor(0.2615, dtype=torch.float64)
    """
    kernels = ntk_kernels(predict, parameters, x)
    curvatures = [_output_curvature(predict, criterion, parameters, *examples) for examples in zip(x, y, strict=True)]
    return optimal_adaptation_lr_from_kernels(kernels, torch.stack(curvatures))


def _output_curvature(predict: Predict, criterion: Any, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """∂²L/∂f² of one environment, (R, R)."""
    with torch.inference_mode(False), torch.no_grad():
        outputs = predict(parameters, x)
    shape = outputs.shape
    curvature: Tensor = torch.autograd.functional.hessian(
        lambda flat: criterion(flat.reshape(shape), y), outputs.reshape(-1)
    )
    return curvature


def _ratio_of_traces(matrices: Tensor) -> Tensor:
    """The ratio tr E[M²] / tr E[M³], for matrices whose eigenvalues are those of H, (tasks, n, n)."""
    if not bool(matrices.isfinite().all()):
        raise ValueError("The features hold values that are not finite; the optimal rate needs finite ones.")
    scale = matrices.abs().max()
    if scale == 0:
        raise ValueError("All features are 0: the loss is constant, and no inner rate is better than another.")
    scaled = matrices / scale  # third powers overflow easily
    square = scaled @ scaled
    second = square.diagonal(dim1=-2, dim2=-1).sum()
    third = (square * scaled.mT).sum()
    return second / third / scale
