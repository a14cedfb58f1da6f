"""The inner loop: differentiable gradient descent on the support set of many environments at once.

Sources: C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017
[Finn17]; S. Takagi et al., "Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective", 2021 [T21]; "LIL": linearity in the inner loop, 2022 [L22].

The forward pass is vmapped over environments and differentiated *outside* of vmap. The other way round
(``vmap(grad(...))``) gives silently wrong second-order gradients through batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.embeddings import DenseEmbeddings
from lightning_gp.functional.gradient_steps import gradient_steps, norm_per_environment
from lightning_gp.functional.held_constant import constant, recording_constants
from lightning_gp.functional.inner_optimizers import differentiable_step
from lightning_gp.types import Examples, InnerOptimizer, Loss, Parameters, RateSchedule


@dataclass(frozen=True)
class Trajectory:
    """The path θ_0 … θ_S of the adapted parameters in each of E environments.

    Attributes:
        parameters: S + 1 dicts of tensors (E, *shape): θ_0 … θ_S, only the adapted parameters.
        gradients: the inner-loss gradients g_0 … g_{S-1}, and g_S if ``final_gradient=True`` was asked for.
        shared: the parameters that the inner loop leaves alone, (*shape).
    """

    parameters: tuple[Parameters, ...]
    gradients: tuple[Parameters, ...]
    shared: Parameters

    @property
    def steps(self) -> int:
        """Number of inner steps S."""
        return len(self.parameters) - 1

    @property
    def path_length(self) -> Tensor:
        """Σ_k ‖θ_{k+1} − θ_k‖ in each environment, (E,) [L22, Eq. 8]."""
        if self.steps < 1:
            raise ValueError(f"A path of {self.steps} inner steps has no length; take a Trajectory that adapt() made.")
        pairs = zip(self.parameters[:-1], self.parameters[1:], strict=True)
        return torch.stack([norm_per_environment(difference(after, before)) for before, after in pairs]).sum(0)


def difference(left: Parameters, right: Parameters) -> Parameters:
    """``left − right``, name by name."""
    return {name: left[name] - right[name] for name in left}


def over_environments(function: Callable[..., Any], stacked: Parameters, shared: Parameters, *tensors: Tensor) -> Any:
    """``function(parameters, *tensors)`` in each environment, vectorised.

    Args:
        function: takes one environment's parameters and tensors (without the environment axis); returns a pytree.
        stacked: parameters (E, *shape) that differ between environments.
        shared: parameters (*shape) that do not.
        *tensors: each (E, ...).

    Returns:
        What ``function`` returns, each tensor with a leading environment axis.
    """

    def call(own: Parameters, *slices: Tensor) -> Any:
        return function({**shared, **own}, *slices)

    with DenseEmbeddings():
        return _over_environments(call, stacked, *tensors)


def _over_environments(call: Callable[..., Any], stacked: Parameters, *tensors: Tensor) -> Any:
    if tensors[0].shape[0] == 1:
        # No vmap for a single environment: it costs nothing to unpack, and networks that vmap cannot map still work.
        # `squeeze` and not `[0]`, whose derivative would copy every gradient.
        own = {name: value.squeeze(0) for name, value in stacked.items()}
        out = call(own, *(tensor.squeeze(0) for tensor in tensors))
        return torch.utils._pytree.tree_map(lambda value: value.unsqueeze(0), out)
    return torch.vmap(call, randomness="different")(stacked, *tensors)


def adapt(
    loss: Loss,
    parameters: Parameters,
    support: Examples,
    lr: RateSchedule,
    steps: int = 1,
    *,
    first_order: bool = False,
    adapted: Collection[str] | None = None,
    create_graph: bool = True,
    final_gradient: bool = False,
    inner_optimizer: InnerOptimizer | None = None,
    normalize: bool = False,
    proximal: float = 0.0,
    keep_path: bool = True,
) -> Trajectory:
    """Gradient descent on each environment's support loss: θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [T21, Eq. 3].

    Args:
        loss: the scalar loss of one environment.
        parameters: θ_0, tensors (*shape) shared by all environments.
        support: x (E, K, *feature), y (E, K, *target).
        lr: α, a number, a tensor (learned rates get their gradient) or one per parameter name; a tuple of these for
            the steps one after the other. Below 0 the loop ascends.
        steps: S ≥ 1, the number of inner steps.
        first_order: drop the Jacobian of the inner steps (FOMAML): gradients are treated as constants.
        adapted: names that the inner loop updates; None for all.
        create_graph: keep the path differentiable; False for evaluation, where nothing outlives its step.
        final_gradient: also compute g_S, which ``loss_gradient_ratio`` needs.
        inner_optimizer: builds an optimizer of ``torch.optim`` from a list of tensors (E, *shape); its step, made
            differentiable, replaces plain gradient descent (see ``differentiable_step``), and ``lr`` is ignored.
        normalize: steps of length |α| along the gradient of each environment, none where it is 0.
        proximal: λ of a term λ/2 ‖θ − θ_0‖² that is added to the loss (and is in ``gradients``).
        keep_path: False for θ_S alone, so that memory does not grow with S; the trajectory then has no steps.

    Returns:
        The trajectory; ``create_graph=False`` detaches it.

    Raises:
        ValueError: if ``steps`` < 1, ``adapted`` names an unknown parameter or none, ``lr`` lacks one, the support set
            is empty or its axes disagree, the loss does not depend on the parameters, or an optimizer meets
            ``normalize``.

    Example:
        >>> def loss(p, x, y):
        ...     return (p["w"] * x - y).square().mean()
        >>> x = torch.ones(2, 3)
        >>> path = adapt(loss, {"w": torch.zeros(())}, (x, 2 * x), lr=0.25)
        >>> path.parameters[-1]["w"].tolist()
        [1.0, 1.0]
    """
    names = _checked_names(parameters, adapted, steps)
    x, y = support
    count = _checked_count(x, y)
    shared = {name: value for name, value in parameters.items() if name not in names}
    start = theta = {name: _stacked(parameters[name], count, create_graph) for name in parameters if name in names}
    update = _updates(lr, normalize, inner_optimizer, theta, create_graph)
    held = create_graph and first_order and recording_constants()
    second_order = create_graph and (held or not first_order)

    def gradient_at(theta: Parameters) -> Parameters:
        gradient = _gradient(loss, theta, shared, x, y, second_order)
        if proximal:
            with torch.set_grad_enabled(second_order):
                gradient = {name: g + proximal * (theta[name] - start[name]) for name, g in gradient.items()}
        return {name: constant(value) for name, value in gradient.items()} if held else gradient

    path, gradients = [theta], []
    with torch.enable_grad():
        for _ in range(steps):
            gradient = gradient_at(theta)
            theta = update(theta, gradient)
            if not create_graph:
                theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
            path.append(theta)
            gradients.append(gradient)
            if not keep_path:
                del path[:-1], gradients[:]
        if final_gradient:
            gradients.append(gradient_at(theta))
    return Trajectory(tuple(path), tuple(gradients), shared)


def _checked_names(parameters: Parameters, adapted: Collection[str] | None, steps: int) -> set[str]:
    checks.whole(1, hint="use ERM for none", steps=steps)
    if adapted is None:
        return set(parameters)
    unknown = set(adapted) - set(parameters)
    if unknown or not adapted:
        raise ValueError(f"adapted={sorted(adapted)} must name at least one of the parameters {sorted(parameters)}.")
    return set(adapted)


def _checked_count(x: Tensor, y: Tensor) -> int:
    if not x.shape[0] == y.shape[0] > 0:
        raise ValueError(
            f"support: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; both must begin with the same number of "
            "environments, at least 1."
        )
    return x.shape[0]


def _updates(
    lr: RateSchedule, normalize: bool, build: InnerOptimizer | None, theta: Parameters, create_graph: bool
) -> Callable[[Parameters, Parameters], Parameters]:
    if build is None:
        return gradient_steps(lr, normalize)
    if normalize:
        raise ValueError("normalize=True is of plain gradient steps; give no inner optimizer, or leave it False.")
    return differentiable_step(build, theta, create_graph)


def _stacked(parameter: Tensor, count: int, create_graph: bool) -> Tensor:
    """A view (E, *shape) of one parameter that the inner loop can differentiate by."""
    if not create_graph:
        parameter = parameter.detach()
    # For one environment a plain view, whose derivative is a view as well.
    expanded = parameter.unsqueeze(0) if count == 1 else parameter.expand(count, *parameter.shape)
    return expanded if expanded.requires_grad else expanded.requires_grad_()


def _gradient(loss: Loss, theta: Parameters, shared: Parameters, x: Tensor, y: Tensor, graph: bool) -> Parameters:
    # Environments do not interact, so the gradient of the sum is every environment's own gradient.
    total = over_environments(loss, theta, shared, x, y).sum()
    if not total.requires_grad:
        raise ValueError(
            "The loss does not depend on the adapted parameters. Compute it from the dict that is passed in, e.g. with "
            "torch.func.functional_call(network, parameters, x), without detach() or no_grad()."
        )
    gradients = torch.autograd.grad(total, list(theta.values()), create_graph=graph, materialize_grads=True)
    return dict(zip(theta, gradients, strict=True))
