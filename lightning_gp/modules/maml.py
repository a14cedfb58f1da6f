"""MAML: what the inner loop updates, and what the outer loop differentiates.

Sources: C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017;
S. Takagi et al., "Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective", 2021 [T21].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import CurvatureKind, Key, Rate
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.inner_loop import run
from lightning_gp.functional.inner_optimizers.step import check_inner_optimizer
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.loops import InnerLoop
from lightning_gp.modules.inner_rates import Granularity, InnerLR, InnerRates
from lightning_gp.modules.low_rank import low_rank_losses
from lightning_gp.modules.step_losses import earlier_losses, earlier_weight, step_values
from lightning_gp.modules.written_out import WrittenOut
from lightning_gp.networks.parts import select_parameters
from lightning_gp.types import Direction, Examples, InnerOptimizer, Loss, ModuleOptions, ParameterChoice, Parameters


class MAML(WrittenOut):
    """Model-agnostic meta-learning: mean_τ L_τ^te(θ_S), θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [T21, Eq. 3-5].

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α ≥ 0, one number or one per parameter name or prefix; with ``normalize`` the length ρ of a step.
        inner_steps: S ≥ 1, inner steps in training.
        first_order: drop the second derivatives (FOMAML).
        adapt: what the inner loop updates: ``"all"``, ``"head"``, ``"body"``, name prefixes, or a predicate on names.
        eval_inner_steps: inner steps at validation and test; None for ``inner_steps``.
        learn_inner_lr: train the inner rates as well, starting from ``inner_lr``.
        inner_lr_per: granularity of learned rates: ``"scalar"``, ``"parameter"``, ``"element"`` (Meta-SGD), or
            ``"step"``, one per parameter and inner step (MAML++); more steps at evaluation take the last.
        direction: ``"ascent"`` goes up the support loss instead, θ_{k+1} = θ_k + α ∇L_τ^tr(θ_k): min–max, the mirror
            image of MAML [T21, section V].
        normalize: each environment's step is along ∇L_τ^tr/‖∇L_τ^tr‖ over the adapted parameters, none where it is 0.
            With ascent, ``first_order`` and the query set as support, this is sharpness-aware minimisation (SAM) in
            each environment.
        multi_step_loss: T: train on the query loss after every inner step, equally at first and on the last alone after
            T optimizer steps, see ``modules.step_losses`` (MAML++); 0 for the last alone.
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
        *WrittenOut.keys,
        Key("<stage>/loss_step_<i>", "ℝ", "the query loss after i inner steps; after the last it is ``<stage>/loss``"),
        Key("<stage>/accuracy_step_<i>", "[0, 1]", "likewise the accuracy"),
        Key("train/query_loss", "ℝ", "the query loss after the last inner step, with ``multi_step_loss``"),
        Key("train/earlier_loss", "ℝ", "likewise the mean of those after the steps before"),
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
        direction: Direction = "descent",
        normalize: bool = False,
        multi_step_loss: int = 0,
        inner_optimizer: InnerOptimizer | None = None,
        recompute: bool = False,
        compile: bool = False,
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, **kwargs)
        none = "use ERM to train without an inner loop"
        checks.whole(1, hint=none, inner_steps=inner_steps)
        checks.optional_whole(1, hint=none, eval_inner_steps=eval_inner_steps)
        checks.whole(0, multi_step_loss=multi_step_loss)
        checks.choice(("descent", "ascent"), direction=direction)
        self.save_hyperparameters()
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.first_order = first_order
        self.adapt = adapt
        own = {name: network.get_parameter(name).detach() for name in self.adapted}
        if inner_optimizer is not None:
            check_inner_optimizer(inner_optimizer, own)
            if direction == "ascent" or normalize:
                raise ValueError(
                    f"direction={direction!r}, normalize={normalize} are of plain inner steps, in whose place is an "
                    "inner_optimizer; let it ascend by its own option maximize=True, or leave it None."
                )
        self.direction: Direction = direction
        self.normalize = normalize
        self.multi_step_loss = multi_step_loss
        self.inner_rates = InnerRates(inner_lr, own, learn_inner_lr, inner_lr_per, inner_steps)
        self.inner_optimizer = inner_optimizer
        self.recompute = recompute
        self.compile_step = compile
        if recompute or compile:
            self.check_written_out(MAML)
            if multi_step_loss:
                raise ValueError("recompute=True and compile=True keep θ_S alone; set multi_step_loss to 0.")
        self._low_rank: bool | None = None
        self._meta_gradient = torch.compile(meta_gradient, dynamic=False) if compile else meta_gradient

    def setup(self, stage: str) -> None:
        """As ``EnvironmentModule``; the low-rank form is tried anew."""
        super().setup(stage)
        self._low_rank = None

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
        return InnerLoop(
            self.loss,
            self.inner_rates.schedule(self.adapted),
            self.inner_steps,
            self.adapted,
            self.first_order,
            self.inner_optimizer,
            self.direction,
            self.normalize,
        )

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
        changes = f"multi_step_loss={self.multi_step_loss} changes the objective while training; set it to 0 for a map."
        return Rate(
            "inner_lr",
            "radius ρ" if self.normalize else f"inner rate α{', ascent' if self.direction == 'ascent' else ''}",
            self.inner_rates.numbers,
            self.inner_rates.fill,
            self._curvature_kind(),
            self.inner_steps,
            changes=changes if self.multi_step_loss else "",
        )

    def _curvature_kind(self) -> CurvatureKind | None:
        if self.normalize or self.multi_step_loss:
            return None
        if self.direction == "ascent":
            return "first_order_ascent" if self.first_order else "ascent"
        return "fomaml" if self.first_order else "maml"

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

    def term_weights(self) -> dict[str, float]:
        """The share of the query losses before the last inner step, while ``multi_step_loss`` lasts."""
        earlier = earlier_weight(self.global_step, self.multi_step_loss, self.inner_steps)
        return {"query_loss": 1 - earlier, "earlier_loss": earlier} if earlier else {}

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """L_τ^te(θ_S) of each environment, (E,), and the mean of those before the last step where they count."""
        earlier = earlier_weight(self.global_step, self.multi_step_loss, self.inner_steps)
        low_rank = None if earlier else low_rank_losses(self, MAML, parameters, environments)
        if low_rank is not None:
            return {"loss": low_rank}
        trajectory = self.adaptation(self.loss, parameters, environments)
        query = environments.split("query")
        losses: Tensor = over_environments(self.loss, trajectory.parameters[-1], trajectory.shared, *query)
        if not earlier:
            return {"loss": losses}
        return {"query_loss": losses, "earlier_loss": earlier_losses(self.loss, trajectory, query)}

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Query loss and accuracy of each environment before adaptation and after each inner step."""
        parameters = self.network_parameters()
        trajectory = self.adaptation(
            self.loss, parameters, environments, steps=self.eval_inner_steps, create_graph=False
        )
        return step_values(self.measure, trajectory, environments.split("query"))

    def predictions(self, support: Examples, x: Tensor) -> Tensor:
        """The outputs on x after ``eval_inner_steps`` inner steps on ``support``; see ``EnvironmentModule``."""
        with torch.inference_mode(False), torch.enable_grad(), plain_kernels():
            tasks = Environments((support[0].clone(), support[1].clone()))
            parameters = self.network_parameters()
            end = self.adaptation(self.loss, parameters, tasks, steps=self.eval_inner_steps, create_graph=False)
            with torch.no_grad():
                outputs: Tensor = over_environments(self.predict, end.parameters[-1], end.shared, x.clone())
        return outputs
