"""The same step by the package ``higher``, for comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_gp.types import InnerOptimizer, Parameters


def higher_step(
    build: InnerOptimizer, theta: Parameters, create_graph: bool
) -> Callable[[Parameters, Parameters], Parameters]:
    """As ``differentiable_step``, by ``higher``, which must be installed.

    What ``higher`` does otherwise than torch: it leaves out ``maximize`` and ``decoupled_weight_decay`` without a word,
    adds Adam's ε before the bias correction, gives a tensor rate no gradient, begins from an empty state, and knows
    neither AdamW nor NAdam nor RAdam.

    Raises:
        ModuleNotFoundError: if ``higher`` is not installed.
        ValueError: of ``higher``, for an optimizer that it does not know.
    """
    import higher

    leaves = [value.detach().requires_grad_() for value in theta.values()]
    optimizer = higher.optim.get_diff_optim(build(leaves), leaves, track_higher_grads=create_graph)

    def update(theta: Parameters, gradient: Parameters) -> Parameters:
        values = list(theta.values())
        # `higher` wants to differentiate a loss itself; the callback puts the known gradient in place of its own.
        placeholder = torch.stack([value.sum() for value in values]).sum()
        stepped = optimizer.step(placeholder, params=values, grad_callback=lambda _: [gradient[n] for n in theta])
        return dict(zip(theta, stepped, strict=True))

    return update
