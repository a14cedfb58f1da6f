"""Short trainings at many values of one learning rate, all from the same weights and on the same batches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_gp.checks import number
from lightning_gp.contracts import Objective
from lightning_gp.modules.schedulers import with_rate
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.stream import BatchStream

RATIO = 10 ** (1 / 3)
"""Between neighbouring candidates."""
DIVERGENCE = 100.0
"""A training has diverged when its loss exceeds its first one so many times."""


class Tunable(Objective, Protocol):
    """What the tuner takes: an objective with an outer optimizer, with or without an inner loop."""

    def configure_optimizers(self) -> Any:
        """As Lightning wants it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that the module holds."""


class Trial(NamedTuple):
    """One short training at one rate.

    Attributes:
        rate: what was tried.
        loss: mean training objective over the last quarter of the iterations and over seeds; None if training diverged
            with any.
    """

    rate: float
    loss: float | None


class Trials:
    """Runs short trainings of a copy of a module with the module's own optimizer.

    Seed s trains on batches of its own, those that follow the batches of seed s − 1.

    Args:
        module: what is trained; it is changed, so give a copy.
        stream: the batches.
        iterations: outer steps of each training.
        seeds: of whatever is random in training.
        progress: called with a line of text after each rate.
        varies: whether the module has an inner rate that is tried.
    """

    def __init__(
        self,
        module: Tunable,
        stream: BatchStream,
        iterations: int,
        seeds: Sequence[int],
        progress: Callable[[str], None] | None,
        varies: bool = True,
    ) -> None:
        self.module, self.iterations, self.progress, self.varies = module, iterations, progress, varies
        self.trainers = [
            CellTrainer(module, stream.later(i * (iterations + 1)), self._build, DIVERGENCE, seed, varies)
            for i, seed in enumerate(seeds)
        ]
        self.count = 0

    @property
    def trained(self) -> list[Tensor]:
        """The weights at the end of the last training that did not diverge."""
        return self.trainers[-1].trained

    def _build(self, parameters: list[nn.Parameter], outer_lr: float) -> torch.optim.Optimizer:
        return with_rate(only_optimizer(self.module), outer_lr)

    def __call__(self, inner_lr: float, outer_lr: float) -> float | None:
        """The loss of ``Trial``; ``trained`` then holds the weights, unless training diverged."""
        losses = [self._loss(trainer, inner_lr, outer_lr) for trainer in self.trainers]
        found = [loss for loss in losses if loss is not None]
        loss = statistics.fmean(found) if len(found) == len(losses) else None
        self.count += 1
        if self.progress is not None:
            shown = "diverged" if loss is None else f"loss {loss:.4g}"
            inner = f"inner rate {inner_lr:.3g}, " if self.varies else ""
            self.progress(f"trial {self.count}: {inner}outer rate {outer_lr:.3g}: {shown}")
        return loss

    def _loss(self, trainer: CellTrainer, inner_lr: float, outer_lr: float) -> float | None:
        late: list[float] = []

        def look(iteration: int, loss: float) -> None:
            if 4 * iteration >= 3 * self.iterations:
                late.append(loss)

        outcome = trainer(inner_lr, outer_lr, self.iterations, look)
        return None if outcome.diverged else statistics.fmean(late)


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


def only_optimizer(module: Tunable) -> torch.optim.Optimizer:
    """What ``configure_optimizers`` builds, without schedulers.

    Raises:
        ValueError: if there is not exactly one optimizer.
    """
    found: object = module.configure_optimizers()
    if isinstance(found, dict):
        found = found.get("optimizer")
    elif isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found = found[0]
    if isinstance(found, (list, tuple)) and len(found) == 1:
        found = found[0]
    if not isinstance(found, torch.optim.Optimizer):
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers gives no single optimizer, so there is no one outer rate "
            "to tune; let it return one optimizer, alone or with a scheduler."
        )
    return found


def around(center: float, below: int, above: int) -> list[float]:
    """Rates ``RATIO`` apart, so many below and above ``center``."""
    number(above=0, center=center)
    return [center * RATIO**power for power in range(-below, above + 1)]
