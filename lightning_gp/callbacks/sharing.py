"""How the probes of a run share their batches: one copy for all that want the same."""

from __future__ import annotations

from lightning_gp._lightning import Trainer, callbacks_of
from lightning_gp.callbacks.losses import AnyLoss
from lightning_gp.callbacks.measures import Measures
from lightning_gp.callbacks.probe_batch import ProbeBatch

ENVIRONMENTS = 8
"""Default number of environments in a probe batch, over all processes."""


def shared_batch(probe: Measures, trainer: Trainer, loss: AnyLoss) -> ProbeBatch:
    """The batch of the first probe before this one that wants the same, or else a new one.

    Args:
        probe: who asks.
        trainer: whose callbacks may share.
        loss: the module's losses.
    """
    size = probe.probe_size or (ENVIRONMENTS if loss.by_environment else None)
    if probe.whole_batches(loss):
        size = None
    if size is not None and loss.shares_examples:
        size *= trainer.world_size  # every process keeps its share of each of these environments
    fresh = ProbeBatch(size, loss.by_environment, trainer.global_rank, trainer.world_size)
    for callback in callbacks_of(trainer):
        if callback is probe:
            break
        if not isinstance(callback, Measures) or callback.loss is None:
            continue
        if callback.every_n_steps == probe.every_n_steps and callback.batch.like(fresh):
            return callback.batch
    return fresh
