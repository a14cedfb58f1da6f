"""The neural tangent kernel of any network: its Jacobian by the parameters, as the features of a linear model.

Near θ_0 a network is linear in its parameters, f(θ) ≈ f(θ_0) + Φ (θ − θ_0), with the features Φ = ∂f/∂θ at θ_0. Their
kernel ΦΦᵀ is the neural tangent kernel [J18].

Source:
    [J18] A. Jacot, F. Gabriel, C. Hongler (2018), Neural tangent kernel: convergence and generalization in neural
    networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Parameters

Predict = Callable[[Parameters, Tensor], Tensor]
"""``predict(parameters, x)``: the outputs (K, *out) of one environment's inputs x (K, *feature)."""

KERNEL_BYTES = 2**28
"""What the Jacobians of the environments that are computed at once may occupy."""


def ntk_features(predict: Predict, parameters: Parameters, x: Tensor) -> Tensor:
    """Φ = ∂f/∂θ of each environment.

    One backward pass for every row, for all environments at once. An output may depend on all inputs of its
    environment, as it does through batch normalisation.

    Args:
        predict: the outputs of one environment.
        parameters: θ_0, tensors (*shape); left as they are.
        x: inputs (E, K, *feature).

    Returns:
        (E, R, P) with R = K · (outputs per example) rows, output by output of the first example, then of the second,
        and P parameters in the order of ``parameters``.

    Raises:
        ValueError: if there is no parameter, or the outputs do not depend on any.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> ntk_features(lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, x)
        tensor([[[1., 2.],
                 [3., 4.]]])
    """
    if not parameters:
        raise ValueError("parameters is empty: there is nothing to differentiate by.")
    count = x.shape[0]
    with torch.inference_mode(False), torch.enable_grad():
        copies = {
            name: value.detach().clone().expand(count, *value.shape).requires_grad_()
            for name, value in parameters.items()
        }
        # One copy of θ per environment, so that the gradient of a sum over environments keeps them apart.
        outputs: Tensor = over_environments(predict, copies, {}, x).reshape(count, -1)
        if not outputs.requires_grad:
            raise ValueError("The outputs of predict do not depend on the parameters that it is given; use them in it.")
        rows = [
            torch.autograd.grad(total, list(copies.values()), retain_graph=True, materialize_grads=True)
            for total in outputs.sum(0)
        ]
    return torch.stack([torch.cat([as_rows(gradient) for gradient in row], 1) for row in rows], 1)


def ntk_kernels(predict: Predict, parameters: Parameters, x: Tensor) -> Tensor:
    """ΦΦᵀ of each environment, the empirical neural tangent kernel [J18].

    The features are never held for more environments than fit ``KERNEL_BYTES``.

    Args:
        predict: as for ``ntk_features``.
        parameters: as for ``ntk_features``.
        x: inputs (E, K, *feature).

    Returns:
        (E, R, R), with the rows of ``ntk_features``.

    Raises:
        ValueError: as for ``ntk_features``.
    """
    first = ntk_features(predict, parameters, x[:1])
    size = max(1, KERNEL_BYTES // (first.numel() * first.element_size()))
    pieces = [first] if len(x) == 1 else (ntk_features(predict, parameters, part) for part in x.split(size))
    return torch.cat([features @ features.mT for features in pieces])
