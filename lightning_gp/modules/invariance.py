"""``InvarianceModule``: the risk of each environment plus a penalty on the shape of the risks.

Sources: [A19] and [K21] of ``modules.irm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Dealt, Key, Rate
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of
from lightning_gp.functional.processes import processes
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.types import ModuleOptions, Parameters


class InvarianceModule(NamedEnvironmentModule):
    """Base of the modules whose objective is the risk of each environment plus a penalty on the risks' shape.

    The objective of environment τ is (R_τ + l2·‖θ‖² + λ·penalty_τ) / (λ if ``rescale_loss`` and λ > 1 else 1), λ the
    penalty weight of the step. Subclasses define ``penalties``. The logits come from ``predict``, the risk from
    ``criterion``: override these two, not ``loss``.

    **Several devices.** Where data are dealt in ``"shares"``, every process holds a share of *each* environment, the
    same environments in the same order. Risks and penalties are then those of all processes' examples together: the
    sums they are made of are added up over processes, differentiably, and the gradient is that of the global penalty,
    not the mean of the processes' own. With ``"episodes"`` each process holds whole environments of its own, as many
    as any other; then nothing but DDP's own averaging is needed.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        penalty_weight: λ ≥ 0.
        anneal_steps: the weight is 1 for this many optimizer steps, then ``penalty_weight``; 0 for no annealing.
        rescale_loss: divide the objective by the weight where that is above 1, which bounds the gradient.
        l2: weight of ‖θ‖² (biases included) in the objective, before rescaling.
        dealt: ``"shares"`` or ``"episodes"``, see above; None for what the data module declares, or else episodes.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if a number is negative, an option unknown, or a subclass overrides ``loss``.
    """

    keys = (
        *NamedEnvironmentModule.keys,
        Key("train/risk", "ℝ", "the mean risk"),
        Key("train/penalty", "[0, ∞)", "the penalty, before weighting"),
        Key("train/weight_decay", "[0, ∞)", "‖θ‖²"),
        Key("train/penalty_weight", "[0, ∞)", "λ of the step"),
    )

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: float = 1.0,
        anneal_steps: int = 0,
        rescale_loss: bool = False,
        l2: float = 0.0,
        dealt: Dealt | None = None,
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, **kwargs)
        checks.number(minimum=0, penalty_weight=penalty_weight, l2=l2)
        checks.whole(0, anneal_steps=anneal_steps)
        checks.choice((None, "episodes", "shares"), dealt=dealt)
        if type(self).loss is not EnvironmentModule.loss:
            raise ValueError(
                f"{type(self).__name__} overrides loss(), which this objective does not call: it needs the logits. "
                "Override predict() or pass a criterion instead."
            )
        self.save_hyperparameters()
        self.penalty_weight = penalty_weight
        self.anneal_steps = anneal_steps
        self.rescale_loss = rescale_loss
        self.l2 = l2
        self.dealt = dealt

    # -- the objective ------------------------------------------------------------------------------------------

    handles = ("episodes", "shares")

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``risk``, ``penalty`` and, where it has a weight, ``weight_decay`` of each environment, (E,)."""
        logits, y = self.logits(parameters, environments)
        return self.terms(parameters, self.risks(logits, y), self.penalties(logits, y))

    def logits(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Tensor]:
        """Logits (E, K, ...) and targets (E, K, ...)."""
        x, y = self.trained_examples(environments)
        return self.unadapted(self.predict, parameters, x), y

    def terms(self, parameters: Parameters, risks: Tensor, penalties: Tensor) -> dict[str, Tensor]:
        """The terms from risks and penalties, each (E,)."""
        terms = {"risk": risks, "penalty": penalties}
        if self.l2 > 0:
            norm = torch.stack([value.square().sum() for value in parameters.values()]).sum()
            terms["weight_decay"] = norm.expand(len(risks))
        return terms

    def term_weights(self) -> Mapping[str, float]:
        """λ of this step on the penalty, ``l2`` on the weight decay."""
        return {"penalty": self.current_weight(), "weight_decay": self.l2}

    def combined(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, divided by λ where that is asked for."""
        objectives, weight = super().combined(terms), self.current_weight()
        return objectives / weight if self.rescale_loss and weight > 1 else objectives

    def risks(self, logits: Tensor, targets: Tensor) -> Tensor:
        """R_τ of logits (E, K, ...) and targets (E, K, ...), over all processes: (E,)."""
        return self.mean_over_examples(self.each(self.risk, logits, targets), targets)

    def penalties(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The penalty of each environment, (E,), from logits (E, K, ...) and targets (E, K, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define penalties(logits, targets).")

    def current_weight(self) -> float:
        """λ of this optimizer step: 1 while annealing, ``penalty_weight`` afterwards."""
        return 1.0 if self.global_step < self.anneal_steps else self.penalty_weight

    def rate(self) -> Rate:
        """The penalty weight; no theory of its effective curvature is known here."""
        changes = (
            f"anneal_steps={self.anneal_steps} changes the penalty during training, so that α would not be one number; "
            "set anneal_steps=0 for a map."
        )

        def put(weight: float) -> None:
            self.penalty_weight = weight

        return Rate(
            "penalty_weight",
            "penalty weight α",
            lambda: (self.penalty_weight,),
            put,
            changes=changes if self.anneal_steps else "",
        )

    @staticmethod
    def each(function: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """``function(logits, targets)``, a scalar, in each environment: (E,).

        A loop: there are few environments, and the criterion need not be one that ``vmap`` can differentiate inside.
        """
        return torch.stack([function(z, y) for z, y in zip(logits, targets, strict=True)])

    # -- checks -------------------------------------------------------------------------------------------------

    def training_step(self, batch: EnvironmentBatch, batch_idx: int) -> Tensor:
        """Lightning's training step: logs ``train/loss`` and the ``train/penalty_weight`` in force."""
        batches = as_batches(batch)
        count = sum(count_of(environments) for environments in batches)
        if not self.shares_examples:
            count *= processes()
        if count < 2:
            raise ValueError(
                f"{type(self).__name__} got {count} training environment; invariance needs at least 2. Give the data "
                "module more environments, or train with ERM."
            )
        self.log("train/penalty_weight", self.current_weight(), batch_size=count)
        return super().training_step(batches, batch_idx)
