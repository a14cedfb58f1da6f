"""``CriticalLearningRate``: the rate at which the loss turns up along the optimizer's own step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.contracts import Key
from lightning_gp.environments import Environments
from lightning_gp.functional.critical_rate import turning_rate
from lightning_gp.types import Parameters


class CriticalLearningRate(Probe):
    """The smallest rate η along the optimizer's last step at which the loss of the probe batch is back at its start.

    The step from θ to θ′ at rate β has the direction d = (θ − θ′)/β; from the weights at hand the loss is computed at
    θ′ − η d for a few rates, by doubling and bisection, until L(θ′ − η d) = L(θ′). No derivative is taken, so it works
    for any kernel (flash attention), compiled modules, and any optimizer. Several parameter groups are scaled together:
    the rate that is reported is that of the largest.

    It answers another question than ``LearningRateBounds``: along *one* step, not for the sharpest direction. On a
    quadratic it is 2 gᵀd/dᵀHd, which is 2/λ along an eigenvector and larger than the critical rate of gradient descent
    otherwise. Steps whose rate exceeds it raise the loss. With momentum d is the buffer's direction.

    {keys}

    Cost: 10 to 20 forward passes of the probe batch, and a copy of the weights at each step that is measured. Weights
    are put back bitwise.

    Args:
        objective: ``"training"``, what training minimises (adapted, with penalties), or ``"loss"``, at the unadapted
            parameters; the same for modules without environments.
        per_environment: also the rates of the environments one by one.
        tol: relative error of the rates.
        **kwargs: see ``Probe``.

    Raises:
        ValueError: if an argument is out of range, or (in ``setup``) there are no environments for ``per_environment``.
    """

    keys = (
        Key("learning_rates/turning", "[0, ∞]", "the rate η above; 0 if the loss rises at once, ∞ if never"),
        Key("learning_rates/turning_ratio", "[0, ∞]", "the rate in use over η"),
        Key("learning_rates/forward_passes", "[1, ∞)", "of the probe batch, for η"),
        Key("learning_rates/turning_min", "[0, ∞]", "the smallest η of an environment, with ``per_environment=True``"),
        Key("learning_rates/turning_mean", "[0, ∞]", "the mean η over environments, likewise"),
    )

    def __init__(
        self, objective: str = "training", per_environment: bool = False, tol: float = 0.02, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        checks.choice(("training", "loss"), objective=objective)
        checks.flag(per_environment=per_environment)
        if not 0 < tol < 1:
            raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 0.02.")
        self.objective, self.per_environment, self.tol = objective, per_environment, tol

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """It needs forward passes alone."""
        return True

    def begin(self) -> None:
        """Also forgets the last step."""
        super().begin()
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._rate = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also looks for environments."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.per_environment and not isinstance(self.loss, EnvironmentLoss):
            raise ValueError(
                f"per_environment=True: {type(pl_module).__name__} has no environment_losses, or loss_fn hides them. "
                "Leave it out, or let the module define environment_losses(parameters, environments, split)."
            )

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One forward pass."""
        self._function(loss)(loss.parameters(), piece)

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """Keeps the weights before the step."""
        super().on_step(trainer, pl_module, optimizer, position)
        self._rate = max(float(group["lr"]) for group in optimizer.param_groups)
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]
        known = {id(each) for each in parameters}
        kept = [pair for pair in self._weights if id(pair[0]) not in known]  # of other optimizers
        self._weights = [*kept, *((each, each.detach().clone()) for each in parameters)]

    def _function(self, loss: AnyLoss) -> Any:
        return loss.objectives if self.objective == "training" else loss.losses

    def measure(self, measurement: Measurement) -> Report:
        """The rate at which the mean loss turns, and those of environments."""
        if not self._weights or self._rate <= 0:
            return Report()
        after = [parameter.detach().clone() for parameter, _ in self._weights]
        parameters, replay = measurement.loss.parameters(), measurement.replay()

        def along(loss: Callable[[], Tensor]) -> Callable[[float], float]:
            def at(rate: float) -> float:
                replay()  # the same random numbers, buffers and weights at every rate
                self._move(after, rate)
                return float(loss())

            return at

        def mean() -> Tensor:
            value = measurement.mean_loss(parameters, training=self.objective == "training").detach()
            return torch.tensor(measurement.ranks.totals(value)[0])

        try:
            found = turning_rate(along(mean), self._rate, self.tol)
            values = {
                "learning_rates/turning": found.rate,
                "learning_rates/turning_ratio": self._rate / found.rate if found.rate else math.inf,
                "learning_rates/forward_passes": float(found.evaluations),
            }
            if self.per_environment:
                function = self._function(measurement.loss)
                each = [
                    turning_rate(along(partial(_detached, function, parameters, one)), self._rate, self.tol).rate
                    for piece in measurement.pieces
                    for one in piece.chunks(1)
                ]
                everyone = measurement.all_environments(torch.tensor(each, dtype=torch.float64))
                values["learning_rates/turning_min"] = float(everyone.min())
                values["learning_rates/turning_mean"] = float(everyone.mean())
        finally:
            self._move(after, 0.0)
        return Report(values)

    @torch.no_grad()
    def _move(self, after: list[Tensor], rate: float) -> None:
        """To θ′ − η d = θ′ + (η/β)(θ′ − θ)."""
        for (parameter, before), new in zip(self._weights, after, strict=True):
            parameter.copy_(new if rate == 0 else torch.lerp(before, new, 1 + rate / self._rate))


def _detached(
    function: Callable[[Parameters, Environments], Tensor], parameters: Parameters, one: Environments
) -> Tensor:
    value: Tensor = function(parameters, one).detach().sum()
    return value
