"""``InnerLoop``: an inner loop as a value, which modules give, and which functions, callbacks and maps take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_gp.types import Direction, InnerOptimizer, Loss, Names, Rates, RateSchedule


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop as one value: what is adapted, how, and to which order; ``functional.inner_loop`` runs it.

    ``dataclasses.replace`` makes another one, such as ``replace(module.inner_loop(), steps=5)``.

    Attributes:
        loss: the scalar loss of one environment.
        rates: α ≥ 0, see ``functional.adapt``; ``signed_rates`` are what it takes.
        steps: S ≥ 1.
        adapted: names of the parameters that are adapted; None for all.
        first_order: drop the Jacobian of the inner steps.
        optimizer: builds a ``torch.optim`` optimizer in place of gradient descent; ``rates`` is then ignored.
        direction: ``"descent"`` or ``"ascent"`` of the loss.
        normalize: the gradient of each environment has length 1 in a step.
        proximal: λ ≥ 0 of a term λ/2 ‖θ − θ_0‖² beside the loss.
    """

    loss: Loss
    rates: RateSchedule
    steps: int = 1
    adapted: Names | None = None
    first_order: bool = False
    optimizer: InnerOptimizer | None = None
    direction: Direction = "descent"
    normalize: bool = False
    proximal: float = 0.0

    @property
    def sign(self) -> int:
        """+1 for descent, −1 for ascent: the sign of α on the axis that both share."""
        return 1 if self.direction == "descent" else -1

    @property
    def signed_rates(self) -> RateSchedule:
        """α as ``functional.adapt`` takes it: below 0 for ascent."""
        return self.rates if self.sign == 1 else negated(self.rates)


def negated(rates: RateSchedule) -> RateSchedule:
    """−α, of each parameter and step."""
    if isinstance(rates, tuple):
        return tuple(_negated(each) for each in rates)
    return _negated(rates)


def _negated(rates: Rates) -> Rates:
    return {name: -rate for name, rate in rates.items()} if isinstance(rates, Mapping) else -rates
