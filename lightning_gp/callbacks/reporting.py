"""How what a probe found reaches Lightning's metrics and loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.loggers import log_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_values(values: Mapping[str, float], trainer: Trainer, pl_module: LightningModule, each_step: bool) -> None:
    """Logs numbers that are the same in every process.

    Args:
        values: by key.
        trainer: the Trainer.
        pl_module: the module, whose ``log`` is used.
        each_step: whether they belong to a step; otherwise to an epoch.
    """
    # sync_dist only keeps Lightning from warning about them.
    options: dict[str, Any] = {"batch_size": 1, "sync_dist": trainer.world_size > 1}
    if not each_step:
        for key, value in values.items():
            pl_module.log(key, value, on_step=False, on_epoch=True, **options)
        return
    for key, value in values.items():
        pl_module.log(key, value, on_step=True, on_epoch=False, logger=False, **options)
    # Lightning passes step values on only every `log_every_n_steps`, which would lose measurements.
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def draw(pictures: Mapping[str, Callable[[], Figure]], trainer: Trainer) -> None:
    """Draws pictures, where a logger shows them.

    Args:
        pictures: by key.
        trainer: the Trainer.
    """
    if pictures and trainer.is_global_zero and trainer.loggers:
        log_figures(trainer, {key: picture() for key, picture in pictures.items()})
