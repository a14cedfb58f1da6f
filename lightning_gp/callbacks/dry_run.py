"""``DryRun``: before the first optimizer step of a fit, a probe does once what it will do later."""

from __future__ import annotations

from lightning_gp._lightning import Trainer
from lightning_gp.callbacks.agreement import Before, check_agreement
from lightning_gp.callbacks.batches import copied
from lightning_gp.callbacks.function_loss import FunctionLoss
from lightning_gp.callbacks.isolation import isolated
from lightning_gp.callbacks.losses import AnyLoss, Indexed, Piece, Skipped
from lightning_gp.callbacks.measures import Measures


class DryRun:
    """Refuses what could not be measured later, and a ``training_step`` that gives another gradient than training has.

    It is done once; after a batch that the module passes over, it is tried again on the next.

    Args:
        apart: types of objects that may change meanwhile.

    Attributes:
        trained: the batch of the step, as it was before; None to try it on a part of the probe batch.
    """

    def __init__(self, apart: tuple[type, ...]) -> None:
        self.apart = apart
        self._done = False
        self.trained: Indexed | None = None
        self._before: Before | None = None

    def remember(self, trainer: Trainer, loss: AnyLoss, batch: object, batch_idx: int) -> None:
        """A training step begins: what it works on, for the comparison of gradients."""
        if not self._done and isinstance(loss, FunctionLoss):
            self.trained = Indexed(copied(batch), batch_idx)
            self._before = Before.of(trainer, loss, self.apart)

    def run(self, probe: Measures, loss: AnyLoss) -> None:
        """Tries it, unless that has been done or nothing is there to try it on.

        Args:
            probe: what will measure.
            loss: the module's losses, with the gradients of training in ``.grad``.

        Raises:
            ValueError: naming what cannot be measured; also whatever ``check`` of the probe raises.
        """
        if self._done or not probe.batch.batches:
            return
        self._done = True
        try:
            self._compare(probe, loss)
            self._check(probe, loss)
        except Skipped:
            self._done = False
        else:
            self.trained = self._before = None

    def _compare(self, probe: Measures, loss: AnyLoss) -> None:
        if self.trained is not None and self._before is not None:
            with isolated(loss.module, apart=self.apart, loss_fn=probe.loss_fn):
                check_agreement(self._before, self.trained, type(probe).__name__)

    def _check(self, probe: Measures, loss: AnyLoss) -> None:
        name = type(probe).__name__
        with isolated(loss.module, apart=self.apart, verify=name, loss_fn=probe.loss_fn) as run:
            if self.trained is not None:
                piece: Piece = self.trained
            else:
                piece = next(loss.pieces(probe.batch.batches[0])[0].chunks(1))
            probe.check(loss, piece)
            several = probe.batch.size is not None and loss.live
            if probe.keeps_graph and several and run.snapshot.touched(loss.parameters().values()):
                raise ValueError(
                    f"{name} needs all batches of its probe at the same weights, but {type(loss.module).__name__} "
                    "writes to its trainable weights while it computes its loss. Leave probe_size=None (one whole "
                    "batch), or write to them in a hook, such as on_train_batch_start."
                )
