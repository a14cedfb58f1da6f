"""LIL: the inner loop of MAML and its relatives, drawn towards a straight and short path.

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22] (later published as SHOT, NeurIPS 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Key
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.gradient_steps import gradient_steps
from lightning_gp.functional.held_constant import constant
from lightning_gp.functional.linearity import (
    DETACH,
    DIVERGENCES,
    Detach,
    Divergence,
    approximation,
    output_divergence,
)
from lightning_gp.modules.inner_rates import InnerLR
from lightning_gp.modules.maml import MAML
from lightning_gp.modules.step_losses import earlier_losses
from lightning_gp.types import InnerLoopOptions, ParameterChoice, Parameters

REGRESSION = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
REGRESSION_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class LIL(MAML):
    """Linearity in the inner loop: mean_τ [ L_τ^te(θ_S) + a·phase_τ + b·amplitude_τ ] [L22, Eq. 7-9].

    - phase = KL( s(f(x|θ_S)) ‖ s(f(x|θ̂)) ), the mean over the query inputs x, with θ̂ = θ_0 − δ g_0 and
      δ = Σ_k ‖θ_{k+1} − θ_k‖ / ‖g_0‖: one step as long as the whole path. A first gradient of 0 gives no penalty.
    - amplitude = Σ_k ‖θ_{k+1} − θ_k‖, the length of the path over the adapted parameters.

    Everything is differentiated, δ and the length included, unless ``detach`` says otherwise. Both terms use the inner
    loop of the task loss and its query outputs; beyond MAML there is one more query forward pass, at θ̂.

    The base algorithm is chosen by arguments: MAML as it is, ANIL with ``adapt="head"``, BOIL with ``adapt="body"``,
    FOMAML with ``first_order=True``, inner ascent with ``direction="ascent"``, Meta-SGD and MAML++ with
    ``learn_inner_lr``, ``inner_lr_per`` and ``multi_step_loss``. (``Reptile`` and ``ImplicitMAML`` differentiate no
    path, and take no loss on it.) First order drops the inner loop's Jacobian from the gradient of the task loss only:
    that is ∇L_τ^te at θ_S, while the two regularisers are differentiated through the inner loop to second order
    (they have no first-order part to speak of). It costs a second query forward pass at θ_S, unless
    ``detach="target"``. [L22] itself has no such mixture: for FOMAML it trains with the regulariser first and without
    it afterwards.

    A term of weight 0 is not computed. Validation and test report the task loss, as in ``MAML``.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α, as in ``MAML``. [L22] uses 0.5 for Conv4 and 0.3 for ResNet-12.
        inner_steps: S; with one step θ̂ = θ_S, and the phase loss is 0.
        first_order: see above.
        adapt: what the inner loop updates, as in ``MAML``.
        phase_weight: a ≥ 0; 0.1 in [L22].
        amplitude_weight: b ≥ 0. None for [L22]'s: 0.01 (its value for 1 shot; for 5 shots it takes 0.1) where the inner
            loop adapts everything, and 0 where it adapts a part only (ANIL, BOIL).
        detach: what of the phase loss is held constant: ``"none"`` [L22], the outputs of the adapted ``"target"``, or
            those of the ``"approximation"`` θ̂.
        divergence: ``"kl"`` [L22], ``"reverse_kl"``, or for regression ``"gaussian"``, ½‖f(x|θ_S) − f(x|θ̂)‖²; see
            ``functional.linearity.output_divergence``.
        **kwargs: of ``MAML`` and ``EnvironmentModule``. ``recompute`` and ``compile`` are refused.

    Raises:
        ValueError: if an argument is out of range, a regression loss meets a divergence of class probabilities, or
            ``first_order`` an ``inner_optimizer``.

    Example:
        >>> import torch
        >>> from lightning_gp.networks import Conv4
        >>> module = LIL(Conv4(ways=2, channels=4, image_size=16), inner_lr=0.5)
        >>> x, y = torch.rand(3, 4, 1, 16, 16), torch.tensor([0, 1, 0, 1]).expand(3, 4)
        >>> {name: value.shape for name, value in module.environment_terms(
        ...     module.network_parameters(), Environments(support=(x, y), query=(x, y))).items()}
        {'task_loss': torch.Size([3]), 'phase_loss': torch.Size([3]), 'amplitude_loss': torch.Size([3])}
    """

    keys = (
        *MAML.keys,
        Key("train/task_loss", "ℝ", "the query loss after the inner loop"),
        Key("train/phase_loss", "[0, ∞)", "the phase loss, before weighting"),
        Key("train/amplitude_loss", "[0, ∞)", "the amplitude loss, before weighting"),
    )

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.5,
        inner_steps: int = 3,
        first_order: bool = False,
        adapt: ParameterChoice = "all",
        phase_weight: float = 0.1,
        amplitude_weight: float | None = None,
        detach: Detach = "none",
        divergence: Divergence = "kl",
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)
        if amplitude_weight is None:
            everything = [name for name, value in network.named_parameters() if value.requires_grad]
            amplitude_weight = 0.01 if set(self.adapted) == set(everything) else 0.0
        checks.number(minimum=0, phase_weight=phase_weight, amplitude_weight=amplitude_weight)
        checks.choice(DETACH, detach=detach)
        checks.choice(DIVERGENCES, divergence=divergence)
        self.save_hyperparameters()
        self.phase_weight, self.amplitude_weight = float(phase_weight), float(amplitude_weight)
        self.detach, self.divergence = detach, divergence
        self._check_regulariser()

    def _check_regulariser(self) -> None:
        if self.regularised and self.first_order and self.inner_optimizer is not None:
            raise ValueError(
                "first_order=True with an inner_optimizer: the path of the task loss cannot be told from that of the "
                "regulariser. Leave inner_optimizer None, or first_order False."
            )
        if not self.phase_weight:
            return
        regression = self.criterion in REGRESSION or isinstance(self.criterion, REGRESSION_MODULES)
        if regression and self.divergence != "gaussian":
            name = getattr(self.criterion, "__name__", type(self.criterion).__name__)
            raise ValueError(
                f"divergence={self.divergence!r} compares class probabilities, but the criterion {name} is one of "
                "regression: its outputs have no softmax. Choose divergence='gaussian' (half the squared distance of "
                "the outputs), or phase_weight=0."
            )
        if self.inner_steps == 1:
            warnings.warn(
                "inner_steps=1: the path of one step is straight, so the phase loss is 0 and does nothing. Use more "
                "inner steps (L22: 3), or set phase_weight=0.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def regularised(self) -> bool:
        """Whether either regulariser has a weight."""
        return bool(self.phase_weight or self.amplitude_weight)

    @property
    def second_order(self) -> bool:
        """The regularisers are differentiated through the inner gradients, also with ``first_order``."""
        return self.regularised or not self.first_order

    # -- the objective ------------------------------------------------------------------------------------------

    def term_weights(self) -> dict[str, float]:
        """A on the phase loss, b on the amplitude loss; the shares of the losses after each step, as in ``MAML``."""
        shares = super().term_weights()
        own = {"phase_loss": self.phase_weight, "amplitude_loss": self.amplitude_weight}
        return {**own, "task_loss": shares["query_loss"], "earlier_loss": shares["earlier_loss"]} if shares else own

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``task_loss`` and, where they have a weight, ``phase_loss`` and ``amplitude_loss`` of each environment."""
        trajectory = self.adaptation(self.loss, parameters, environments, first_order=not self.second_order)
        x, y = environments.split("query")
        task = self._first_order_path(trajectory) if self.first_order and self.regularised else trajectory
        losses, outputs = self._query(task, trajectory, x, y)
        terms = {"task_loss": losses}
        if "earlier_loss" in self.term_weights():
            terms["earlier_loss"] = earlier_losses(self.loss, task, (x, y))
        if not self.regularised:
            return terms
        length = trajectory.path_length
        if self.phase_weight:
            hat = approximation(trajectory, length)
            one_step: Tensor = over_environments(self.predict, hat, trajectory.shared, x)
            terms["phase_loss"] = output_divergence(outputs, one_step, self.detach, self.divergence)
        if self.amplitude_weight:
            terms["amplitude_loss"] = length
        return terms

    def _query(self, task: Trajectory, trajectory: Trajectory, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Task losses (E,) and outputs (E, Q, ...) at θ_S, from one forward pass where one will do."""
        shared = trajectory.shared
        losses, outputs = over_environments(self.loss_and_outputs, task.parameters[-1], shared, x, y)
        if task is trajectory or self.detach == "target" or not self.phase_weight:
            return losses, outputs
        return losses, over_environments(self.predict, trajectory.parameters[-1], shared, x)

    def _first_order_path(self, trajectory: Trajectory) -> Trajectory:
        """The path again, as a function of θ_0 and the rates for constant gradients."""
        loop, path = self.inner_loop(), [trajectory.parameters[0]]
        update = gradient_steps(loop.signed_rates, loop.normalize)
        for gradient in trajectory.gradients:
            path.append(update(path[-1], {name: constant(value) for name, value in gradient.items()}))
        return replace(trajectory, parameters=tuple(path))

    def _try_out(self, batches: Sequence[Environments]) -> None:
        super()._try_out(batches)
        if self.phase_weight and self.divergence != "gaussian" and not _describes_classes(batches[0].support[1]):
            raise ValueError(
                f"divergence={self.divergence!r} compares class probabilities, but the targets are neither class "
                "labels (integers) nor probabilities of classes: this is a regression. Choose divergence='gaussian', "
                "or phase_weight=0."
            )


def _describes_classes(y: Tensor) -> bool:
    """Whether targets (E, K, ...) are integers, or probabilities that sum to 1 over the classes of axis 2."""
    if not y.is_floating_point():
        return True
    return y.ndim > 2 and bool((y >= 0).all()) and bool(((y.sum(2) - 1).abs() < 1e-3).all())
