"""MAML and its relatives, which differ only in what the inner loop updates and what the outer loop differentiates.

Sources: C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017
(MAML, FOMAML); A. Raghu et al., "Rapid learning or feature reuse?", ICLR 2020 (ANIL); J. Oh et al., "BOIL: towards
representation change for few-shot learning", ICLR 2021 (BOIL); S. Takagi et al., "Analysis of trainability of
gradient-based multi-environment learning from gradient norm regularization perspective", 2021 [T21].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of, examples_of
from lightning_gp.functional.adaptation import Trajectory, adapt, over_environments
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.functional.precomputed import accumulated
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.checks import check_steps
from lightning_gp.modules.inner_rates import Granularity, InnerLR, InnerRates
from lightning_gp.networks.parts import select_parameters
from lightning_gp.types import InnerOptimizer, Loss, ParameterChoice, Parameters


class MAML(EnvironmentModule):
    """Model-agnostic meta-learning: mean_τ L_τ^te(θ_S), θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [T21, Eq. 3-5].

    Validation and test log, for every number of inner steps k, ``loss_step_<k>`` and (classification)
    ``accuracy_step_<k>`` on the query set, and as ``loss`` and ``accuracy`` those after the last step.

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α ≥ 0, one number or one per parameter name or prefix.
        inner_steps: S ≥ 1, inner steps in training.
        first_order: drop the second derivatives (FOMAML).
        adapt: what the inner loop updates: ``"all"``, ``"head"``, ``"body"``, name prefixes, or a predicate on names.
        eval_inner_steps: inner steps at validation and test; None for ``inner_steps``.
        learn_inner_lr: train the inner rates as well, starting from ``inner_lr``.
        inner_lr_per: granularity of learned rates: ``"scalar"``, ``"parameter"`` or ``"element"`` (Meta-SGD).
        inner_optimizer: builds any ``torch.optim`` optimizer that ``higher`` can differentiate, for the inner loop in
            place of gradient descent; ``inner_lr`` then has no effect.
        recompute: compute each inner step again instead of storing its graph; memory does not grow with S. The loss
            must not draw random numbers.
        compile: compile the whole step with ``torch.compile`` (slow to start).
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if an argument is out of range or names no parameter.
        RuntimeError: at the first step, if torch cannot compile it (torch 2.5 cannot).

    Example:
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = MAML(SinusoidMLP(), inner_lr=0.01, criterion=nn.functional.mse_loss)
        >>> x = torch.zeros(3, 10, 1)
        >>> module.training_loss(Environments(support=(x, x), query=(x, x))).shape
        torch.Size([])
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "all",
        eval_inner_steps: int | None = None,
        learn_inner_lr: bool = False,
        inner_lr_per: Granularity = "parameter",
        inner_optimizer: InnerOptimizer | None = None,
        recompute: bool = False,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        check_steps("inner_steps", inner_steps)
        check_steps("eval_inner_steps", inner_steps if eval_inner_steps is None else eval_inner_steps)
        self.save_hyperparameters(
            ignore=["network", "criterion", "optimizer", "lr_scheduler", "inner_optimizer"]
            + (["adapt"] if callable(adapt) else [])
        )
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.first_order = first_order
        self.adapted = select_parameters(network, adapt)
        own = {name: network.get_parameter(name).detach() for name in self.adapted}
        self.inner_rates = InnerRates(inner_lr, own, learn_inner_lr, inner_lr_per)
        self.inner_optimizer = inner_optimizer
        self.recompute = recompute
        self.compile_step = compile
        if recompute or compile:
            self._check_explicit()
        self._meta_gradient = torch.compile(meta_gradient, dynamic=False) if compile else meta_gradient

    @property
    def second_order(self) -> bool:
        """Whether training differentiates the inner gradients."""
        return not self.first_order

    def adaptation(self, loss: Loss, parameters: Parameters, environments: Environments, **options: Any) -> Trajectory:
        """The inner loop of this module on the support sets; ``options`` as for ``functional.adapt``."""
        options = {"steps": self.inner_steps, "first_order": self.first_order, **options}
        return adapt(
            loss,
            parameters,
            environments.support,
            self.inner_rates(),
            adapted=self.adapted,
            inner_optimizer=self.inner_optimizer,
            **options,
        )

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """L_τ^te(θ_S) of each environment, (E,)."""
        trajectory = self.adaptation(self.loss, parameters, environments)
        losses: Tensor = over_environments(
            self.loss, trajectory.parameters[-1], trajectory.shared, *examples_of(environments, "query")
        )
        return losses

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Query loss and accuracy of each environment before adaptation and after each inner step."""
        parameters = self.network_parameters()
        trajectory = self.adaptation(
            self.loss, parameters, environments, steps=self.eval_inner_steps, create_graph=False
        )
        query = examples_of(environments, "query")
        values: dict[str, Tensor] = {}
        measured: dict[str, Tensor] = {}
        with torch.no_grad():
            for step, theta in enumerate(trajectory.parameters):
                measured = over_environments(self.measure, theta, trajectory.shared, *query)
                values.update({f"{name}_step_{step}": value for name, value in measured.items()})
        return {**values, **measured}

    # -- the explicit meta-gradient -----------------------------------------------------------------------------

    def training_loss(self, batch: EnvironmentBatch) -> Tensor:
        """The mean adapted query loss; with ``recompute`` or ``compile`` through the written-out gradient."""
        if not (self.recompute or self.compile_step):
            return super().training_loss(batch)
        batches = as_batches(batch)
        total = sum(count_of(environments) for environments in batches)
        inputs = self.trained_parameters()

        def value_and_gradients(environments: Environments) -> tuple[Tensor, list[Tensor]]:
            value, gradients = self._explicit(environments, 1 / total)
            return value, [gradients[id(tensor)] for tensor in inputs]

        return accumulated(value_and_gradients, self.pieces(batches), inputs)

    def _explicit(self, environments: Environments, weight: float) -> tuple[Tensor, dict[int, Tensor]]:
        """``weight`` times the sum of the objectives, and its gradient by every trained tensor, keyed by id."""
        parameters, rates = self.network_parameters(), self.inner_rates()
        with self._naming_compilation():
            result = self._meta_gradient(
                self.loss,
                parameters,
                environments.support,
                examples_of(environments, "query"),
                rates,
                self.inner_steps,
                weight=weight,
                first_order=self.first_order,
                adapted=self.adapted,
                rate_gradients=self.inner_rates.learned,
                traceable=self.compile_step,
            )
        gradients = {id(tensor): result.parameters[name] for name, tensor in parameters.items()}
        for name, gradient in result.rates.items():
            rate = rates[name]
            assert isinstance(rate, Tensor)
            gradient = gradient.sum_to_size(rate.shape)
            gradients[id(rate)] = gradients[id(rate)] + gradient if id(rate) in gradients else gradient
        return weight * result.losses.sum(), gradients

    @contextmanager
    def _naming_compilation(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.compile_step or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise RuntimeError(
                f"torch {torch.__version__} could not compile the step of {type(self).__name__}, with "
                f"{type(error).__name__}: leave compile False, or try a newer torch. Above is torch's own message."
            ) from error

    def _check_explicit(self) -> None:
        if type(self).environment_objectives is not MAML.environment_objectives:
            raise ValueError(
                f"{type(self).__name__} overrides environment_objectives, whose gradient recompute=True and "
                "compile=True do not know; leave both False."
            )
        dropout = [name for name, layer in self.network.named_modules() if getattr(layer, "p", 0) and _drops(layer)]
        if self.recompute and dropout:
            raise ValueError(
                f"recompute=True runs each inner step again, and {', '.join(dropout)} would drop other units the "
                "second time: the gradient would be wrong. Leave recompute False, or set the dropout probability to 0."
            )
        if self.inner_optimizer is not None:
            raise ValueError(
                "recompute=True and compile=True write out the gradient of plain gradient descent; leave both False "
                "together with inner_optimizer."
            )


def _drops(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd)


class FOMAML(MAML):
    """First-order MAML: the gradient of L_τ^te at θ_S, the inner loop's Jacobian dropped (Finn et al., 2017).

    Arguments as for ``MAML``, with ``first_order=True``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, **kwargs)


class ANIL(MAML):
    """Almost no inner loop: only the head is adapted, everything is meta-learned (Raghu et al., 2020).

    Arguments as for ``MAML``, with ``adapt="head"``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "head",
        **kwargs: Any,
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)


class BOIL(MAML):
    """Body only update in the inner loop: the head is meta-learned but never adapted (Oh et al., 2021).

    Arguments as for ``MAML``, with ``adapt="body"``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "body",
        **kwargs: Any,
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)
