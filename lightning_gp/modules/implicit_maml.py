"""Implicit MAML: the meta-gradient from where the inner loop ends, whatever the way there.

[R19] A. Rajeswaran, C. Finn, S. Kakade, S. Levine, "Meta-learning with implicit gradients", NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.environments import Environments
from lightning_gp.functional.held_constant import prescribed, recording_constants
from lightning_gp.functional.implicit import implicit_gradient
from lightning_gp.functional.inner_loop import run
from lightning_gp.loops import InnerLoop
from lightning_gp.modules.inner_rates import InnerLR
from lightning_gp.modules.maml import MAML
from lightning_gp.modules.reptile import refuse
from lightning_gp.types import InnerLoopOptions, ParameterChoice, Parameters


class ImplicitMAML(MAML):
    """mean_τ L_τ^te(θ*_τ), θ*_τ = argmin_φ L_τ^tr(φ) + λ/2 ‖φ − θ‖², differentiated implicitly (iMAML) [R19].

    θ*_τ is found by S gradient steps on the loss with its proximal term, the gradient (I + H/λ)⁻¹ ∇L_τ^te(θ*_τ) by
    conjugate gradients (``functional.implicit_gradient``). Memory does not grow with S. The gradient is exact where
    the inner loop has converged and I + H/λ is positive definite: λ beyond the most negative curvature, a rate below
    2/(λ + λ_max), enough steps. Otherwise it is an approximation, as in [R19].

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α of the inner steps, as in ``MAML``.
        inner_steps: S; 16 in [R19].
        adapt: what the inner loop updates, as in ``MAML``.
        proximal: λ > 0; 2 in [R19] on Omniglot.
        cg_steps: of conjugate gradients; 5 in [R19].
        cg_tol: residual, relative to ∇L_τ^te(θ*_τ), at which they end earlier.
        **kwargs: of ``MAML``: ``inner_optimizer``, ``eval_inner_steps``; and of ``EnvironmentModule``.

    Raises:
        ValueError: if an argument is out of range, or one that asks for a gradient along the path is given.

    Example:
        >>> import torch
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = ImplicitMAML(SinusoidMLP(), inner_lr=0.01, criterion=nn.functional.mse_loss)
        >>> x = torch.zeros(3, 10, 1)
        >>> module.training_loss(Environments(support=(x, x), query=(x, x))).shape
        torch.Size([])
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 16,
        adapt: ParameterChoice = "all",
        proximal: float = 2.0,
        cg_steps: int = 5,
        cg_tol: float = 0.0,
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        checks.number(above=0, proximal=proximal)
        checks.number(minimum=0, cg_tol=cg_tol)
        checks.whole(1, cg_steps=cg_steps)
        self.proximal, self.cg_steps, self.cg_tol = proximal, cg_steps, cg_tol
        super().__init__(network, inner_lr, inner_steps, True, adapt, **kwargs)
        refuse(self, "takes its gradient from the end of the inner loop")
        if self.direction == "ascent" or self.normalize:
            raise ValueError(
                "direction='ascent' and normalize=True do not end at a minimum of the loss with its proximal term, "
                "where alone the implicit gradient holds; leave them out."
            )

    @property
    def second_order(self) -> bool:
        """The Hessian at θ* is multiplied with vectors."""
        return True

    def inner_loop(self) -> InnerLoop:
        """That of ``MAML`` with the proximal term; no gradient goes through its steps."""
        return replace(super().inner_loop(), proximal=self.proximal)

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """L_τ^te(θ*) of each environment, (E,), with the implicit gradient."""
        graph = recording_constants()
        end = run(self.inner_loop(), parameters, environments.support, create_graph=graph, keep_path=False)
        losses, gradient = implicit_gradient(
            self.loss,
            end.parameters[-1],
            end.shared,
            environments,
            self.proximal,
            self.cg_steps,
            self.cg_tol,
            create_graph=graph,
        )
        return {"loss": prescribed(losses, parameters, gradient)}
