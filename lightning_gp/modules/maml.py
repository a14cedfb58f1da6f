"""MAML: what the inner loop updates, and what the outer loop differentiates.

Sources: C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017;
S. Takagi et al., "Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective", 2021 [T21].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import CurvatureKind, InnerLoop, Key, Rate
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.inner_loop import differentiate, run
from lightning_gp.functional.inner_optimizers.step import check_inner_optimizer
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.functional.precomputed import Evaluated, Evaluation
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.inner_rates import Granularity, InnerLR, InnerRates
from lightning_gp.networks.parts import select_parameters
from lightning_gp.types import (
    Examples,
    InnerOptimizer,
    Loss,
    MetaGradient,
    ModuleOptions,
    ParameterChoice,
    Parameters,
    Rates,
)


class MAML(EnvironmentModule):
    """Model-agnostic meta-learning: mean_τ L_τ^te(θ_S), θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [T21, Eq. 3-5].

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α ≥ 0, one number or one per parameter name or prefix.
        inner_steps: S ≥ 1, inner steps in training.
        first_order: drop the second derivatives (FOMAML).
        adapt: what the inner loop updates: ``"all"``, ``"head"``, ``"body"``, name prefixes, or a predicate on names.
        eval_inner_steps: inner steps at validation and test; None for ``inner_steps``.
        learn_inner_lr: train the inner rates as well, starting from ``inner_lr``.
        inner_lr_per: granularity of learned rates: ``"scalar"``, ``"parameter"`` or ``"element"`` (Meta-SGD).
        inner_optimizer: builds an SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad or Adadelta of ``torch.optim`` for
            the inner loop in place of gradient descent; ``inner_lr`` then has no effect.
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

    keys = (
        *EnvironmentModule.keys,
        Key("<stage>/loss_step_<i>", "ℝ", "the query loss after i inner steps; after the last it is ``<stage>/loss``"),
        Key("<stage>/accuracy_step_<i>", "[0, 1]", "likewise the accuracy"),
    )

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
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, **kwargs)
        none = "use ERM to train without an inner loop"
        checks.whole(1, hint=none, inner_steps=inner_steps)
        checks.optional_whole(1, hint=none, eval_inner_steps=eval_inner_steps)
        self.save_hyperparameters()
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.first_order = first_order
        self.adapt = adapt
        own = {name: network.get_parameter(name).detach() for name in self.adapted}
        if inner_optimizer is not None:
            check_inner_optimizer(inner_optimizer, own)
        self.inner_rates = InnerRates(inner_lr, own, learn_inner_lr, inner_lr_per)
        self.inner_optimizer = inner_optimizer
        self.recompute = recompute
        self.compile_step = compile
        if recompute or compile:
            self._check_explicit()
        self._meta_gradient = torch.compile(meta_gradient, dynamic=False) if compile else meta_gradient

    @property
    def learns_rates(self) -> bool:
        """Whether the outer optimizer trains the inner rates."""
        return self.inner_rates.learned

    @property
    def redraws(self) -> bool:  # type: ignore[override]
        """Whether inner steps are computed again, so that the loss must not be random."""
        return self.recompute

    @property
    def second_order(self) -> bool:
        """Whether training differentiates the inner gradients."""
        return not self.first_order

    @property
    def adapted(self) -> list[str]:
        """Names of the parameters that the inner loop updates: those that ``adapt`` picks and that are not frozen."""
        return select_parameters(self.network, self.adapt)

    def inner_loop(self) -> InnerLoop:
        """The inner loop of this module: what both ways to differentiate it, the callbacks and the maps take."""
        adapted = self.adapted
        rates = self.inner_rates(adapted)
        return InnerLoop(self.loss, rates, self.inner_steps, adapted, self.first_order, self.inner_optimizer)

    def rate(self) -> Rate:
        """The inner rate of all adapted parameters.

        Raises:
            ValueError: if an ``inner_optimizer`` takes its place.
        """
        if self.inner_optimizer is not None:
            raise ValueError(
                f"{type(self).__name__} adapts with an inner_optimizer, which ignores inner_lr; remove it, or tune the "
                "optimizer's own settings by hand."
            )
        rates = self.inner_rates
        kind: CurvatureKind = "fomaml" if self.first_order else "maml"
        return Rate("inner_lr", "inner rate α", rates.numbers, rates.fill, kind, self.inner_steps)

    def adaptation(self, loss: Loss, parameters: Parameters, environments: Environments, **options: Any) -> Trajectory:
        """Runs the inner loop on the support sets.

        Args:
            loss: of one environment, in place of the module's.
            parameters: θ_0, (*shape).
            environments: of which the support sets are used.
            **options: ``create_graph``, ``final_gradient`` of ``functional.adapt``; others replace fields of the loop,
                such as ``steps`` and ``first_order``.
        """
        kept = {name: options.pop(name) for name in ("create_graph", "final_gradient") if name in options}
        return run(replace(self.inner_loop(), loss=loss, **options), parameters, environments.support, **kept)

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """L_τ^te(θ_S) of each environment, (E,)."""
        trajectory = self.adaptation(self.loss, parameters, environments)
        losses: Tensor = over_environments(
            self.loss, trajectory.parameters[-1], trajectory.shared, *environments.split("query")
        )
        return {"loss": losses}

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Query loss and accuracy of each environment before adaptation and after each inner step."""
        parameters = self.network_parameters()
        trajectory = self.adaptation(
            self.loss, parameters, environments, steps=self.eval_inner_steps, create_graph=False
        )
        query = environments.split("query")
        values: dict[str, Tensor] = {}
        measured: dict[str, Tensor] = {}
        with torch.no_grad():
            for step, theta in enumerate(trajectory.parameters):
                measured = over_environments(self.measure, theta, trajectory.shared, *query)
                values.update({f"{name}_step_{step}": value for name, value in measured.items()})
        return {**values, **measured}

    def predictions(self, support: Examples, x: Tensor) -> Tensor:
        """The outputs on x after ``eval_inner_steps`` inner steps on ``support``; see ``EnvironmentModule``."""
        with torch.inference_mode(False), torch.enable_grad(), plain_kernels():
            tasks = Environments((support[0].clone(), support[1].clone()))
            parameters = self.network_parameters()
            end = self.adaptation(self.loss, parameters, tasks, steps=self.eval_inner_steps, create_graph=False)
            with torch.no_grad():
                outputs: Tensor = over_environments(self.predict, end.parameters[-1], end.shared, x.clone())
        return outputs

    # -- the explicit meta-gradient -----------------------------------------------------------------------------

    def explicit(self, total: int) -> Evaluation[Environments] | None:
        """The written-out gradient, with ``recompute`` or ``compile``."""
        if not (self.recompute or self.compile_step):
            return None

        def evaluated(environments: Environments) -> Evaluated:
            parameters, rates = self.network_parameters(), self.inner_rates(self.adapted)
            result = self.meta_gradient(parameters, environments, weight=1 / total)
            gradients = {id(tensor): result.parameters[name] for name, tensor in parameters.items()}
            for name, gradient in result.rates.items():
                rate = rates[name]
                assert isinstance(rate, Tensor)
                gradient = gradient.sum_to_size(rate.shape)
                gradients[id(rate)] = gradients[id(rate)] + gradient if id(rate) in gradients else gradient
            known = [gradients.get(id(each), torch.zeros_like(each)) for each in self.trained_parameters()]
            return Evaluated(result.losses.sum() / total, known, {"loss": result.losses.sum() / total})

        return evaluated

    def meta_gradient(
        self,
        parameters: Parameters,
        environments: Environments,
        rates: Rates | None = None,
        function: Callable[..., MetaGradient] | None = None,
        **options: Any,
    ) -> MetaGradient:
        """The gradient of the query losses at θ_S, written out; see ``functional.meta_gradient``.

        Args:
            parameters: θ_0, (*shape).
            environments: with a query set, or without.
            rates: in place of the module's.
            function: what to run, in place of ``functional.meta_gradient`` (compiled, with ``compile=True``).
            **options: of ``functional.meta_gradient``.
        """
        loop = self.inner_loop()
        with self._naming_compilation():
            return differentiate(
                loop if rates is None else replace(loop, rates=rates),
                parameters,
                environments.support,
                environments.split("query"),
                function=function or self._meta_gradient,
                rate_gradients=self.learns_rates and rates is None,
                traceable=self.compile_step,
                **options,
            )

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
        for name in ("environment_objectives", "environment_terms", "adaptation"):
            if getattr(type(self), name) is not getattr(MAML, name):
                raise ValueError(
                    f"{type(self).__name__} overrides {name}, whose gradient recompute=True and compile=True do not "
                    "know; leave both False, or override inner_loop(), which changes every way to differentiate it."
                )
        if self.inner_optimizer is not None:
            raise ValueError(
                "recompute=True and compile=True write out the gradient of plain gradient descent; leave both False "
                "together with inner_optimizer."
            )
