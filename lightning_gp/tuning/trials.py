"""Short trainings at many values of one learning rate, all from the same weights and on the same batches."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lightning_gp.checks import number

RATIO = 10 ** (1 / 3)
"""Between neighbouring candidates."""
DIVERGENCE = 100.0
"""A training has diverged when its loss exceeds its first one so many times."""


class Trial(NamedTuple):
    """One short training at one rate.

    Attributes:
        rate: what was tried.
        loss: mean training objective over the last quarter of the iterations and over seeds; None if training diverged
            with any.
    """

    rate: float
    loss: float | None


class Trials(ABC):
    """Short trainings from the same weights, one for each rate and seed.

    Attributes:
        optimizer: name of the outer optimizer's class.

    Args:
        iterations: outer steps of each training.
        progress: called with a line of text after each rate.
        varies: whether there is an inner rate that is tried.
    """

    optimizer: str

    def __init__(self, iterations: int, progress: Callable[[str], None] | None, varies: bool) -> None:
        self.iterations, self.progress, self.varies = iterations, progress, varies
        self.count = 0

    def __call__(self, inner_lr: float, outer_lr: float) -> float | None:
        """The loss of ``Trial``."""
        losses = list(self.losses(inner_lr, outer_lr))
        found = [loss for loss in losses if loss is not None]
        loss = statistics.fmean(found) if len(found) == len(losses) else None
        self.count += 1
        if self.progress is not None:
            shown = "diverged" if loss is None else f"loss {loss:.4g}"
            inner = f"inner rate {inner_lr:.3g}, " if self.varies else ""
            self.progress(f"trial {self.count}: {inner}outer rate {outer_lr:.3g}: {shown}")
        return loss

    @abstractmethod
    def losses(self, inner_lr: float, outer_lr: float) -> Iterator[float | None]:
        """The mean of the late losses with each seed, None if training diverged."""

    @abstractmethod
    def first_loss(self, inner_lr: float) -> float:
        """Of the initial weights on the first batch."""

    @abstractmethod
    def bound(self, inner_lr: float, outer_lr: float) -> float | None:
        """β_c of SGD, with or without momentum, at the end of a training with these rates that does not diverge.

        None for an optimizer with second moments, which a trial makes anew, and where nothing bounds β or training
        diverges, at smaller outer rates too.
        """

    @property
    def late_from(self) -> float:
        """The iteration from which on losses count."""
        return 0.75 * self.iterations


def search(evaluate: Callable[[float], float | None], rates: Iterable[float], extra: int = 4) -> tuple[Trial, ...]:
    """Evaluates rates, and goes on beyond them as long as the best one lies at the border.

    Args:
        evaluate: the loss of a rate, None if it cannot be used.
        rates: above 0.
        extra: at most so many rates beyond the given ones.

    Returns:
        The trials by ascending rate.

    Example:
        >>> [round(trial.rate, 1) for trial in search(lambda rate: (rate - 8) ** 2, [1.0, 2.0])]
        [1.0, 2.0, 4.3, 9.3, 20.0]
    """
    losses = {rate: evaluate(rate) for rate in sorted(set(rates))}
    for _ in range(extra):
        usable = {rate: loss for rate, loss in losses.items() if loss is not None}
        best = min(usable, key=lambda rate: usable[rate]) if usable else min(losses)
        if best == min(losses):
            beyond = best / RATIO
        elif best == max(losses):
            beyond = best * RATIO
        else:
            break
        losses[beyond] = evaluate(beyond)
    return tuple(Trial(rate, losses[rate]) for rate in sorted(losses))


def best_trial(trials: Iterable[Trial], tolerance: float = 0.0, largest: bool = True) -> Trial | None:
    """The largest, or smallest, rate whose loss is within ``tolerance`` (relative) of the lowest; None if all diverged.

    Example:
        >>> trials = [Trial(1.0, 2.0), Trial(2.0, 1.99), Trial(4.0, None)]
        >>> best_trial(trials, 0.02), best_trial(trials, 0.02, largest=False)
        (Trial(rate=2.0, loss=1.99), Trial(rate=1.0, loss=2.0))
    """
    usable = [(trial, trial.loss) for trial in trials if trial.loss is not None]
    if not usable:
        return None
    lowest = min(loss for _, loss in usable)
    good = [each for each, loss in usable if loss <= lowest + tolerance * abs(lowest)]
    return (max if largest else min)(good, key=lambda each: each.rate)


def around(center: float, below: int, above: int) -> list[float]:
    """Rates ``RATIO`` apart, so many below and above ``center``."""
    number(above=0, center=center)
    return [center * RATIO**power for power in range(-below, above + 1)]
