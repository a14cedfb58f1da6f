"""Trials of any LightningModule, by its own training loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lightning_gp._lightning import Callback, LightningModule, Trainer
from lightning_gp.callbacks.isolation import forked_rng
from lightning_gp.callbacks.learning_rate_bounds import LearningRateBounds
from lightning_gp.theory.optimizers import update_rule
from lightning_gp.trainability.rehearsal import rehearse, rest_schedulers
from lightning_gp.tuning.trials import DIVERGENCE, Trials


class ConstantRate(Callback):
    """Holds the rate of the optimizer, and notes the losses until the last batch or divergence.

    Attributes:
        own: the module's own rate, the largest of its groups, without warm-up.
        optimizer: the only one.
        adaptive: whether second moments make its steps.
        losses: by iteration, of the batches that had one.
        diverged: whether a loss was not finite or left ± ``divergence`` · |first loss|.

    Args:
        rate: of the group of the largest rate, others in proportion; None for the module's own.
        batches: how many.
        divergence: bound of |loss|, relative to the first.
    """

    def __init__(self, rate: float | None, batches: int, divergence: float = DIVERGENCE) -> None:
        self.rate, self.batches, self.divergence = rate, batches, divergence
        self.own, self.seen, self.adaptive = math.nan, 0, False
        self.losses: dict[int, float] = {}
        self.diverged = False
        self.module: LightningModule | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the module's own rate."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"{type(pl_module).__name__}.configure_optimizers gives {len(trainer.optimizers)} optimizers, so there "
                "is no one outer rate; let it return one optimizer, alone or with a scheduler."
            )
        rest_schedulers(trainer)
        self.module, self.optimizer = pl_module, trainer.optimizers[0]
        bases = [float(_base_rate(group)) for group in self.optimizer.param_groups]
        self.own = max(bases)
        if not 0 < self.own < math.inf:
            raise ValueError(f"The rate of {type(self.optimizer).__name__} is {self.own}; there must be one above 0.")
        with suppress(ValueError):  # of an optimizer that is not known, LearningRateBounds will say so
            self.adaptive = not update_rule(self.optimizer).moves
        rate = self.own if self.rate is None else self.rate
        self.rates = [base * (rate / self.own) for base in bases]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Whatever set another rate since the last step is overruled."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        """Notes the loss, and stops after the last batch or where training diverged."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            value = float(loss)
            first = next(iter(self.losses.values()), value)
            self.losses[self.seen] = value
            bound = self.divergence * max(abs(first), torch.finfo(torch.float32).tiny)
            self.diverged = not (math.isfinite(value) and abs(value) <= bound)
        self.seen += 1
        trainer.should_stop = self.diverged or self.seen >= self.batches

    def mean(self, begin: float) -> float | None:
        """Of the losses from an iteration on, None if training diverged.

        Raises:
            ValueError: if there is none.
        """
        if self.diverged:
            return None
        late = [loss for iteration, loss in self.losses.items() if iteration >= begin]
        if late:
            return statistics.fmean(late)
        if self.module is None:
            raise ValueError("There is no training batch; give data that has some.")
        raise ValueError(
            f"{type(self.module).__name__} trained on {self.seen} of {self.batches} batches, and the last had no loss: "
            "let training_step return its loss, and let nothing end training early."
        )

    @property
    def broken(self) -> bool:
        """Whether the weights are not finite."""
        return self.module is not None and not all(bool(value.isfinite().all()) for value in self.module.parameters())


def _base_rate(group: Any) -> Any:
    """Without what a scheduler made of it: the peak of a cycle, or what was there before a warm-up."""
    return group.get("max_lr", group.get("initial_lr", group["lr"]))


class ModuleTrials(Trials):
    """Runs a copy of a module in a Trainer, as often as there are rates and seeds.

    Every run begins with the same weights and, where their order comes from torch's global random numbers, as that of
    ``DataLoader(shuffle=True)`` does, with the same batches; another seed has other ones.

    Attributes:
        own_rate: the module's own outer rate.

    Args:
        module: stays as it is.
        data: as ``Trainer.fit`` takes it.
        device: where to compute.
        iterations, progress: see ``Trials``.
        seeds: of whatever is random in training.

    Raises:
        ValueError: if there is not exactly one optimizer with a rate above 0, no training batch, or no loss.
    """

    def __init__(
        self,
        module: LightningModule,
        data: Any,
        device: torch.device,
        iterations: int,
        seeds: Sequence[int],
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(iterations, progress, varies=False)
        self.module, self.data, self.device, self.seeds = module, data, device, seeds
        first = self._run(None, seeds[0], 1)
        loss = first.mean(0)
        self._first, self.own_rate = math.nan if loss is None else loss, first.own
        self.optimizer, self._adaptive = type(first.optimizer).__name__, first.adaptive

    def first_loss(self, inner_lr: float) -> float:
        """Of the module's own first training step."""
        return self._first

    def losses(self, inner_lr: float, outer_lr: float) -> Iterator[float | None]:
        """There is no inner rate."""
        return (self._run(outer_lr, seed, self.iterations + 1).mean(self.late_from) for seed in self.seeds)

    def bound(self, inner_lr: float, outer_lr: float) -> float | None:
        """As ``LearningRateBounds`` measures it after the last batch."""
        for _ in range(0 if self._adaptive else 4):
            probe = LearningRateBounds(every_n_steps=self.iterations + 1)
            if not self._run(outer_lr, self.seeds[-1], self.iterations + 1, probe).diverged:
                found = probe.values["learning_rates/outer_critical"]
                return found if found < math.inf else None
            outer_lr /= 10
        return None

    def _run(self, rate: float | None, seed: int, batches: int, *others: Callback) -> ConstantRate:
        return trained(self.module, self.data, self.device, seed, ConstantRate(rate, batches), *others)


def trained(
    module: LightningModule, data: Any, device: torch.device, seed: int, watch: ConstantRate, *others: Callback
) -> ConstantRate:
    """Trains a copy of a module in a Trainer, under the eyes of a callback.

    Args:
        module: stays as it is.
        data: as ``Trainer.fit`` takes it.
        device: where to compute.
        seed: of whatever is random in training.
        watch: ends the training.
        others: callbacks that measure.

    Returns:
        ``watch``; diverged where the module itself refused what had become of its weights.
    """
    places: dict[str, Any] = {"accelerator": device.type}
    if device.index is not None:
        places["devices"] = [device.index]
    with forked_rng(device, seed):
        try:
            rehearse(module, data, [watch, *others], **places)
        except (ValueError, RuntimeError, ArithmeticError):
            if not watch.broken:
                raise
            watch.diverged = True
    return watch
