"""The network linearised at θ_0, f(x|θ_0) + J(x)(θ − θ_0), and the inner loop on it.

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22], section 4.3 and appendix D: in a linear inner loop, θ is
the weight of a linear model on the features φ_c(x) = ∇_θ f_c(x|θ_0).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.gradient_steps import constant_rate, stepped
from lightning_gp.types import Examples, Parameters, Rates

Predict = Callable[[Parameters, Tensor], Tensor]
"""``predict(parameters, x)``: the outputs (K, ...) of one environment."""


class Linearisation:
    """f(x|θ_0) and products with its Jacobian J(x) by θ, in each of E environments; nothing of it carries a graph.

    The products are taken outside of vmap, as in ``adapt``; with batch normalisation J includes the influence of each
    example on the others.

    Args:
        predict: the outputs of one environment.
        start: θ_0, the parameters to linearise in, (E, *shape).
        shared: the other parameters, (*shape).
        x: inputs (E, K, *feature).

    Attributes:
        outputs: f(x|θ_0), (E, K, ...).

    Raises:
        ValueError: if the outputs do not depend on ``start``.
    """

    def __init__(self, predict: Predict, start: Parameters, shared: Parameters, x: Tensor) -> None:
        with torch.enable_grad():
            self._theta = {name: value.detach().requires_grad_() for name, value in start.items()}
            constant = {name: value.detach() for name, value in shared.items()}
            self._recorded: Tensor = over_environments(predict, self._theta, constant, x)
            if not self._recorded.requires_grad:
                raise ValueError("The outputs of predict do not depend on the parameters that it is given; use them.")
            self._dual = torch.zeros_like(self._recorded, requires_grad=True)
            self._pulled_back: tuple[Tensor, ...] | None = None
        self.outputs = self._recorded.detach()

    def product(self, direction: Parameters) -> Tensor:
        """J d, (E, K, ...), for a direction d of tensors (E, *shape)."""
        if self._pulled_back is None:  # Jᵀu as a function of u; its derivative in the direction d is (J d)·du
            self._pulled_back = torch.autograd.grad(
                self._recorded, list(self._theta.values()), self._dual, create_graph=True, materialize_grads=True
            )
        (result,) = torch.autograd.grad(
            self._pulled_back,
            self._dual,
            [direction[name] for name in self._theta],
            retain_graph=True,
            materialize_grads=True,
        )
        return result

    def transposed_product(self, cotangent: Tensor) -> Parameters:
        """Jᵀ r, tensors (E, *shape), for r of the shape of ``outputs``."""
        values = torch.autograd.grad(
            self._recorded, list(self._theta.values()), cotangent, retain_graph=True, materialize_grads=True
        )
        return dict(zip(self._theta, values, strict=True))


def linearised_adapt(
    predict: Predict,
    criterion: Callable[[Tensor, Tensor], Tensor],
    parameters: Parameters,
    support: Examples,
    lr: Rates,
    steps: int = 1,
    *,
    adapted: Collection[str] | None = None,
    final_gradient: bool = False,
) -> Trajectory:
    """The inner loop on the linearised network: θ_{k+1} = θ_k − α Jᵀ ∂L/∂z(z_k), z_k = f(x|θ_0) + J (θ_k − θ_0).

    Every θ_k − θ_0 is a weighted sum of the features of the support examples, θ_S − θ_0 = Σ_i Σ_c β_ic φ_c(x_i) with
    β_ic = −α Σ_k ∂L/∂f_c(x_i): a prototype [L22, Eq. 13, 18]. For a network that is linear in its parameters this is
    ``adapt``.

    Args:
        predict: the outputs (K, ...) of one environment.
        criterion: the scalar loss of one environment from outputs (K, ...) and targets (K, ...).
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        lr: α, as for ``adapt``.
        steps: S ≥ 1.
        adapted: names that the inner loop updates; None for all.
        final_gradient: also give the gradient at θ_S.

    Returns:
        The detached trajectory of S + 1 points, with the gradients of the linearised network's loss.

    Raises:
        ValueError: if ``steps`` < 1, or ``adapted`` names an unknown parameter or none.

    Example:
        >>> path = linearised_adapt(
        ...     lambda p, x: x * p["w"] ** 2, lambda z, y: (z - y).mean(), {"w": torch.tensor(3.0)},
        ...     (torch.ones(1, 2), torch.zeros(1, 2)), lr=0.5, steps=2
        ... )
        >>> [point["w"].item() for point in path.parameters]  # the derivative stays 2 w = 6, as at the start
        [3.0, 0.0, -3.0]
    """
    checks.whole(1, steps=steps)
    names = set(parameters) if adapted is None else set(adapted)
    if not names or names - set(parameters):
        raise ValueError(f"adapted={sorted(names)} must name at least one of the parameters {sorted(parameters)}.")
    x, y = support
    shared = {name: value.detach() for name, value in parameters.items() if name not in names}
    start = {n: value.detach().expand(x.shape[0], *value.shape) for n, value in parameters.items() if n in names}
    linear = Linearisation(predict, start, shared, x)

    def gradient_at(displacement: Parameters | None) -> Parameters:
        moved = linear.outputs if displacement is None else linear.outputs + linear.product(displacement)
        with torch.enable_grad():
            outputs = moved.requires_grad_()
            losses: Tensor = over_environments(lambda _, z, target: criterion(z, target), {}, {}, outputs, y)
            (cotangent,) = torch.autograd.grad(losses.sum(), outputs)
        return linear.transposed_product(cotangent)

    displacement = {name: torch.zeros_like(value) for name, value in start.items()}
    path, gradients = [start], []
    for step in range(steps):
        gradients.append(gradient_at(displacement if step else None))
        displacement = {n: stepped(d, gradients[-1][n], constant_rate(lr, n)) for n, d in displacement.items()}
        path.append({name: start[name] + value for name, value in displacement.items()})
    if final_gradient:
        gradients.append(gradient_at(displacement))
    return Trajectory(tuple(path), tuple(gradients), shared)
