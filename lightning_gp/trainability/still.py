"""A Trainer that runs a module's own training loop and leaves its weights where they are."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lightning_gp._lightning import Callback, LightningModule, Trainer
from lightning_gp.trainability.rehearsal import rest_schedulers


class Still(Callback):
    """Takes steps at rate 0, so that optimizers gather their moments at fixed weights, and stops.

    It has to be the first callback: at the end of a batch the rates are back before anything is measured.

    Args:
        steps: number of training batches.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self._rates: list[tuple[dict[str, Any], Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Schedulers would compute from the rate 0."""
        rest_schedulers(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Rates become 0."""
        for each in trainer.optimizers:
            for group in each.param_groups:
                self._rates.append((group, group["lr"]))
                group["lr"] = 0.0 * group["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Rates are back."""
        while self._rates:  # the first that was noted is the true one, so it is put back last
            group, rate = self._rates.pop()
            group["lr"] = rate
        self.taken += 1
        if self.taken >= self.steps:
            trainer.should_stop = True
