"""The inner loop as one value, which every way to run and to differentiate it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_gp.functional.adaptation import Trajectory, adapt
from lightning_gp.functional.meta_gradient import MetaGradient, meta_gradient
from lightning_gp.types import Examples, InnerOptimizer, Loss, Names, Parameters, Rates


@dataclass(frozen=True)
class InnerLoop:
    """S steps of gradient descent on an environment's support loss: what is adapted, how, and to which order.

    ``dataclasses.replace`` makes another one, such as ``replace(module.inner_loop(), steps=5)``.

    Attributes:
        loss: the scalar loss of one environment.
        rates: α, see ``adapt``.
        steps: S ≥ 1.
        adapted: names of the parameters that are adapted; None for all.
        first_order: drop the Jacobian of the inner steps.
        optimizer: builds a ``torch.optim`` optimizer in place of gradient descent; ``rates`` is then ignored.

    Example:
        >>> import torch
        >>> loop = InnerLoop(lambda p, x, y: (p["w"] * x - y).square().mean(), rates=0.25)
        >>> x = torch.ones(2, 3)
        >>> loop.adapt({"w": torch.zeros(())}, (x, 2 * x)).parameters[-1]["w"].tolist()
        [1.0, 1.0]
    """

    loss: Loss
    rates: Rates
    steps: int = 1
    adapted: Names | None = None
    first_order: bool = False
    optimizer: InnerOptimizer | None = None

    def adapt(
        self, parameters: Parameters, support: Examples, *, create_graph: bool = True, final_gradient: bool = False
    ) -> Trajectory:
        """The path θ_0 … θ_S in each environment; see ``functional.adapt``."""
        return adapt(
            self.loss,
            parameters,
            support,
            self.rates,
            self.steps,
            first_order=self.first_order,
            adapted=self.adapted,
            create_graph=create_graph,
            final_gradient=final_gradient,
            inner_optimizer=self.optimizer,
        )

    def meta_gradient(
        self,
        parameters: Parameters,
        support: Examples,
        query: Examples,
        *,
        function: Callable[..., MetaGradient] = meta_gradient,
        **options: Any,
    ) -> MetaGradient:
        """The written-out gradient of the query losses at θ_S; see ``functional.meta_gradient``.

        Args:
            parameters: θ_0, tensors (*shape).
            support: x (E, K, *feature), y (E, K, *target).
            query: x (E, Q, *feature), y (E, Q, *target).
            function: ``meta_gradient``, or what ``torch.compile`` made of it.
            **options: ``weight``, ``rate_gradients``, ``traceable``.

        Raises:
            ValueError: if the loop has an optimizer: only gradient descent is written out.
        """
        if self.optimizer is not None:
            raise ValueError("The written-out gradient is that of plain gradient descent; give no inner optimizer.")
        return function(
            self.loss,
            parameters,
            support,
            query,
            self.rates,
            self.steps,
            first_order=self.first_order,
            adapted=self.adapted,
            **options,
        )
