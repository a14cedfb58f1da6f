"""What a ``Probe`` measures, as its subclasses say it; when, and on which batch, is the business of ``Probe``."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning_gp._lightning import Callback, LightningModule, Trainer
from lightning_gp.callbacks.function_loss import LossFunction
from lightning_gp.callbacks.losses import AnyLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.probe_batch import ProbeBatch
from lightning_gp.contracts import Key, with_keys


class Measures(Callback):
    """The extension points of a ``Probe``: a subclass defines ``keys`` and ``measure``, the others where it has to.

    Attributes:
        loss_fn: the loss that was given in place of the module's own.
        probe_size: of the probe batch, or None.
        every_n_steps: when it measures, or None for at the end of epochs.
        loss: the module's losses; None before a fit, and where no loss is needed.
        batch: the probe batch.
    """

    loss_fn: LossFunction | None
    probe_size: int | None
    every_n_steps: int | None
    loss: AnyLoss | None
    batch: ProbeBatch

    keys: ClassVar[tuple[Key, ...]] = ()
    """What it logs, without the prefix; ``{keys}`` in the docstring of a subclass becomes their table."""
    keeps_graph: ClassVar[bool] = False
    """Whether it differentiates again what other batches have been added to."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        with_keys(cls)

    def measure(self, measurement: Measurement) -> Report:
        """What to log, without the prefix; runs inside ``isolated``."""
        raise NotImplementedError(f"{type(self).__name__} must define measure(measurement).")

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """Does what ``measure`` will do, once, on a piece of this process: no collective calls. Raises what it would.

        Runs inside ``isolated``; by default the gradient of every environment of ``piece`` is computed.

        Args:
            loss: the module's losses.
            piece: one environment, or one batch.
        """
        loss.gradients(loss.parameters(), piece)

    def needs_loss(self, pl_module: LightningModule) -> bool:
        """Whether this callback runs the module on a probe batch at all."""
        return True

    def whole_batches(self, loss: AnyLoss) -> bool:
        """Whether it measures one whole training batch in place of ``probe_size`` environments.

        Args:
            loss: the module's losses.
        """
        return False

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """Whether it works under FSDP2, where each process has a part of every parameter and gradients are ``Parts``.

        There ``check`` is collective, and ``loss.gradients`` gives what ``callbacks.shards`` sums over processes.
        """
        return False

    def report_without_probe(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """What to log where ``needs_loss`` is False."""
        raise NotImplementedError(f"{type(self).__name__} must define report_without_probe(trainer, pl_module).")
