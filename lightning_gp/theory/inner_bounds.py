"""Which bound the inner rate of a module has, read off what the module says of itself.

Sources: S. Takagi et al., 2019 [T19], Eq. 11 and 23; S. Takagi et al., 2021 [T21], Eq. 18.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_gp.contracts import Adapts, Varies
from lightning_gp.types import RateSchedule, Split


class InnerBound(NamedTuple):
    """An inner rate and what bounds it.

    Attributes:
        rate: α, the largest of the module's; of a penalty a‖∇L‖², 2a.
        names: of the parameters that it acts on; None for all.
        split: the examples whose loss has the curvature that counts; None where nothing bounds α, as in an ascent.
        loses_minimum: whether the minimum is lost for α > 1/λ_max: for a first-order inner loop of an odd number of
            steps and for the negative penalty. With second derivatives, or an even number of steps, c(λ) ≥ 0 at any α.
    """

    rate: float
    names: Collection[str] | None
    split: Split | None
    loses_minimum: bool


def inner_bound(module: object) -> InnerBound | None:
    """The inner rate of a module, such as MAML's or a gradient penalty's; None if it has none that theory knows.

    Args:
        module: any.

    Example:
        >>> from lightning_gp import FOMAML
        >>> from lightning_gp.networks import SinusoidMLP
        >>> inner_bound(FOMAML(SinusoidMLP(), inner_lr=0.1)).loses_minimum
        True
        >>> inner_bound("no module")
    """
    if isinstance(module, Adapts):
        loop = module.inner_loop()
        if loop.optimizer is not None:
            return None
        kind = module.rate().kind if isinstance(module, Varies) else None
        rising = loop.direction == "ascent" or loop.normalize
        loses_minimum = kind == "fomaml" and loop.steps % 2 == 1
        return InnerBound(largest_rate(loop.rates), loop.adapted, None if rising else "support", loses_minimum)
    if not isinstance(module, Varies):
        return None
    rate = module.rate()
    if rate.kind is None:
        return None
    alpha = rate.factor * max(rate.get())
    negative = rate.kind == "fomaml"
    return InnerBound(alpha, rate.names, "query" if negative else None, negative)


def largest_rate(rates: RateSchedule) -> float:
    """The largest of the rates of an inner loop: a number, a tensor, one for each parameter, or these by step."""
    if isinstance(rates, tuple):
        return max(map(largest_rate, rates))
    each = rates.values() if isinstance(rates, Mapping) else [rates]
    return max(float(rate.detach().max()) if isinstance(rate, Tensor) else float(rate) for rate in each)
