"""``Probe``, the base of all callbacks here: measures on a fixed batch, without changing what training does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.dry_run import DryRun
from lightning_gp.callbacks.function_loss import LossFunction, find_loss
from lightning_gp.callbacks.isolation import isolated
from lightning_gp.callbacks.losses import AnyLoss, ModuleLoss, Skipped
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.measures import Measures
from lightning_gp.callbacks.patience import saying_so
from lightning_gp.callbacks.probe_batch import ProbeBatch
from lightning_gp.callbacks.reporting import draw, log_values
from lightning_gp.callbacks.sharing import shared_batch
from lightning_gp.callbacks.steps import Steps
from lightning_gp.callbacks.strategies import check_strategy
from lightning_gp.contracts import MeasuresEnvironments
from lightning_gp.functional.processes import Ranks


class Probe(Measures):
    """Measures something of a module on a fixed probe batch, once per epoch or every n steps.

    A subclass defines ``measure``. **The loss** is found in this order: ``loss_fn``; the module's
    ``environment_losses``; the module's own ``training_step``, with automatic optimization only. It is run as it is, at
    the module's own parameters, and differentiated by these; ``loss_fn`` and ``training_step`` may reach them in any
    way. It is computed without autocast, in the parameters' own precision and at least float32. A batch for which the
    step returns None is passed over.

    **Training is bitwise what it is without the callback.** What the code changes is put back by value: random numbers
    of Python, numpy and torch, and all that hangs on the module, its Trainer and ``loss_fn`` (weights, ``.grad``,
    buffers, hooks, metrics, generators, attributes of any objects, closures, iterators, classes and module variables of
    the user's code, optimizers, schedulers, loops). Nothing is logged meanwhile. The dry run compares everything and
    refuses what it could not put back. It does not see what is written and closed (files, prints, network), what other
    threads do, loggers, and the single items of data sets of more than 1,000.

    **The probe batch** is copied from the first training batches of the fit (until the first measurement, or the end of
    the epoch), before the step could change them, and stays on their device; batches may be of any type that can be
    deep-copied. No data loader is asked for it. Checkpoints hold it (up to 64 MB, every process's share, one copy for
    all probes; tensors in lists, tuples and dicts), so a resumed run goes on with the same batch; otherwise, or if the
    number of processes has changed, a resumed run takes a new one.

    **Values** are logged with ``pl_module.log`` at the end of the training epoch (after validation), or with
    ``every_n_steps`` after those optimizer steps; they are in ``trainer.callback_metrics`` and full precision in
    ``callback.values``. To watch one with ``ModelCheckpoint(monitor=...)`` in a run with validation, pass it
    ``save_on_train_epoch_end=True``. What a measurement costs is logged once, as ``cost_seconds/<class name>``.
    A NaN or infinite loss is logged as such.

    **A dry run** on one environment (one batch, for modules without environments) right before the first optimizer step
    of a fit refuses what could not be measured later: ``check`` does once what ``measure`` will do. A ``training_step``
    must give the gradient that training has just left in ``.grad``, from the state and random numbers with which it
    began; this is not compared with accumulation, several processes, lower precision, or hooks on the backward pass.

    **Processes**: gradients and Hessian products are summed over processes before a statistic is taken, numbers of
    environments as sum and count; every process logs the same value. Under FSDP2 (``fully_shard`` in
    ``configure_model``) those work whose ``works_on_shards`` says so, on gradients of which each process has a part.

    Args:
        loss_fn: ``loss_fn(module, batch)`` that returns a scalar or one loss per environment (E,).
        every_n_epochs: measure at the end of every n-th epoch.
        every_n_steps: measure after every n-th optimizer step instead.
        probe_size: number of environments (examples, for modules without environments) in the probe batch, over all
            processes; None for 8 environments, or one whole training batch.
        prefix: put in front of every key. Several instances of one class need different prefixes.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range. In ``setup``: if no loss is found, or the strategy shards
            parameters in a way that it does not go with. Before the first optimizer step: if the loss is not a scalar,
            not one per environment, does not depend on the parameters, changes what cannot be put back, or has another
            gradient than training; if ``probe_size`` would cut a batch of which it cannot be seen what an example is.
    """

    def __init__(
        self,
        loss_fn: LossFunction | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        probe_size: int | None = None,
        prefix: str = "",
    ) -> None:
        checks.text(prefix=prefix)
        checks.whole(1, every_n_epochs=every_n_epochs)
        checks.optional_whole(1, every_n_steps=every_n_steps, probe_size=probe_size)
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn={loss_fn!r} must be a function of (module, batch) that returns the loss.")
        self.loss_fn, self.prefix, self.probe_size = loss_fn, prefix, probe_size
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.begin()

    def begin(self) -> None:
        """A fit begins: whatever an earlier one has left is forgotten. Called by ``__init__`` too."""
        self.values: dict[str, float] = {}
        self.loss: AnyLoss | None = None
        self.batch = ProbeBatch()
        self._measured_at: tuple[int, int] | None = None
        self._cost_logged = False
        self.dry_run = DryRun(ALONE)
        self._steps: Steps | None = None
        self._steps_seen = 0

    # -- Lightning's hooks --------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Different for instances with different prefixes."""
        return str(self._generate_state_key(prefix=self.prefix))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot work, before training starts."""
        if stage != "fit":
            return
        by_environment = (
            self.loss_fn is None and self.needs_loss(pl_module) and isinstance(pl_module, MeasuresEnvironments)
        )
        check_strategy(trainer.strategy, type(self).__name__, self.works_on_shards(pl_module), by_environment)
        self.begin()
        self.loss = find_loss(pl_module, self.loss_fn, type(self).__name__) if self.needs_loss(pl_module) else None
        if self.loss is not None:
            self.batch = shared_batch(self, trainer, self.loss)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are counted from where a resumed run begins."""
        self._steps = Steps(self, trainer, pl_module)
        self._steps_seen = self.steps(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimizers are no longer watched."""
        if self._steps is not None:
            self._steps.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Optimizers are no longer watched."""
        self.on_train_end(trainer, pl_module)

    def steps(self, trainer: Trainer) -> int:
        """Optimizer steps so far, those included that manual optimization takes behind Lightning's back."""
        return trainer.global_step + (self._steps.by_hand if self._steps is not None else 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Copies the first batches."""
        if self.loss is None:
            return
        self.batch.offer(batch, (trainer.current_epoch, batch_idx))
        self.dry_run.remember(trainer, self.loss, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Lightning's word for a step; see ``on_step``."""
        if self._steps is not None:
            self._steps.by_lightning(optimizer)

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """Refuses what cannot be measured, before the first step changes a weight.

        Called once for each step of each optimizer, also where Lightning does not know of it. The gradients are
        unscaled, reduced over processes and not yet clipped.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            optimizer: the torch optimizer that is about to step.
            position: which of the trainer's optimizers it is, −1 for none of them.
        """
        # Not at the start of the batch: a step may rely on hooks of its module that run later, and lazy parameters are
        # made by the first forward pass.
        if self.loss is not None:
            self.dry_run.run(self, self.loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Measures every n steps."""
        skipped = outputs is None or (isinstance(outputs, Mapping) and not outputs)
        if skipped and self.loss is not None and pl_module.automatic_optimization and not self.loss.by_environment:
            self.batch.withdraw((trainer.current_epoch, batch_idx))
        steps = self.steps(trainer)
        if self.every_n_steps is not None and steps // self.every_n_steps > self._steps_seen // self.every_n_steps:
            self.run(trainer, pl_module)
        self._steps_seen = steps

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures every n epochs."""
        if self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.run(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The probe batch."""
        return {"batch": self.batch.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the probe batch."""
        self.batch.load(state_dict.get("batch", {}))

    # -- one measurement ----------------------------------------------------------------------------------------

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs, unless that has been done at this very point of training."""
        if self.just_measured(trainer):
            return
        self._measured_at = (trainer.current_epoch, self.steps(trainer))
        begin = time.perf_counter()
        if self.loss is None:
            report = self.report_without_probe(trainer, pl_module)
        else:
            ranks = Ranks(trainer, pl_module.device)
            self.batch.restore(pl_module.device)
            (empty,) = ranks.totals(0.0 if self.batch.batches else 1.0)
            if empty:
                return
            report = Report()
            spoken = saying_so(type(self).__name__, trainer.is_global_zero)
            with spoken, isolated(pl_module, apart=ALONE, loss_fn=self.loss_fn) as run, suppress(Skipped):
                report = self.measure(Measurement.of(self.loss, self.batch, ranks, run.again))
            self.batch.gather()
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.values = {self.prefix + key: float(value) for key, value in report.values.items()}
        logged = dict(self.values)
        if not self._cost_logged:
            logged[f"{self.prefix}cost_seconds/{type(self).__name__}"] = time.perf_counter() - begin
            self._cost_logged = True
        log_values(logged, trainer, pl_module, each_step=self.every_n_steps is not None)
        if self.every_n_steps is None:
            draw({self.prefix + key: picture for key, picture in report.pictures.items()}, trainer)

    def just_measured(self, trainer: Trainer) -> bool:
        """Whether the values are those of this very point of training."""
        return self._measured_at == (trainer.current_epoch, self.steps(trainer))


ALONE = (Probe, ModuleLoss, ProbeBatch)
"""What may change while a probe measures."""
