"""A rehearsal: any module's own training loop, on a copy of it, without a trace elsewhere."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from lightning_gp._lightning import NAMESPACE, Callback, LightningDataModule, LightningModule, Trainer, pl

M = TypeVar("M")


def copied(module: M) -> M:
    """A copy without the Trainer, which must not be copied with it.

    Args:
        module: a LightningModule, or anything that can be copied.
    """
    if not isinstance(module, LightningModule):
        return copy.deepcopy(module)
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module)
    finally:
        module._trainer = trainer


def rehearse(module: LightningModule, data: Any, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """Trains a copy of a module until a callback sets ``should_stop``; nothing is validated, logged or saved.

    Args:
        module: stays as it is.
        data: a DataModule, or what ``Trainer.fit`` takes as training data.
        callbacks: what looks on.
        options: as for the Trainer, such as ``accelerator``; ``ckpt_path`` as for ``Trainer.fit``.

    Returns:
        The Trainer, with its optimizers.

    Raises:
        ValueError: if the module lacks what Lightning needs.
    """
    mistake: type[Exception] = importlib.import_module(f"{NAMESPACE}.utilities.exceptions").MisconfigurationException
    ckpt_path = options.pop("ckpt_path", None)
    with _silent():
        return _rehearsed(module, data, callbacks, mistake, ckpt_path, **options)


def _rehearsed(
    module: LightningModule,
    data: Any,
    callbacks: Sequence[Callback],
    mistake: type[Exception],
    ckpt_path: Any,
    **options: Any,
) -> Trainer:
    trainer = pl.Trainer(
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=pl.loggers.logger.DummyLogger(),  # steps that draw into self.logger.experiment run with it
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"devices": 1, **options},
    )
    source = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(copied(module), **source, ckpt_path=ckpt_path)
        except mistake as error:  # Lightning's word for a user's mistake
            raise ValueError(str(error)) from error
    if trainer.interrupted:  # Lightning before 2.5 goes on after Ctrl+C
        raise KeyboardInterrupt
    return trainer


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A Trainer says on which devices it is: once is news, for each of a hundred trials it is not."""
    logger = logging.getLogger(f"{NAMESPACE}.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def rest_schedulers(trainer: Trainer) -> None:
    """Schedulers of rates stay where they are, so that whoever sets a rate has the last word.

    Args:
        trainer: at the start of training.
    """
    for config in trainer.lr_scheduler_configs:
        vars(config.scheduler)["step"] = _nothing
        config.reduce_on_plateau = False  # or Lightning would look for the metric


def _nothing(*args: object, **kwargs: object) -> None:
    return None
