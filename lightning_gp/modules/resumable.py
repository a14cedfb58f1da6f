"""What a module keeps of itself: its optimizer and scheduler, and what a checkpoint says of both."""

from __future__ import annotations

import copy
import importlib
import inspect
from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from lightning_gp import checks
from lightning_gp._lightning import NAMESPACE
from lightning_gp.hyperparameters import plain
from lightning_gp.modules.arguments import UNSAVED, arguments_of, given, savable, unsaved
from lightning_gp.modules.description import description
from lightning_gp.modules.evaluation import Evaluation
from lightning_gp.modules.hooks import always
from lightning_gp.modules.resuming import (
    PlateauOfResumedEpoch,
    check_configuration,
    check_given,
    check_settings,
    check_weights,
    finish_epoch,
    plateau_metrics,
    settings,
)
from lightning_gp.modules.schedulers import check_scheduler, scheduler_config, with_rate
from lightning_gp.types import LRSchedulerCallable, OptimizerCallable, SchedulerConfig

_of_command_line: Any = importlib.import_module(f"{NAMESPACE}.core.mixins.hparams_mixin")._given_hyperparameters
"""In which Lightning's command line keeps the config that it builds a module of."""


class Resumable(Evaluation):
    """The half of ``EnvironmentModule`` that is optimized, saved and resumed.

    Nothing that was not saved falls back to a default in silence: a checkpoint notes what was given to the module and
    is no hyperparameter, and the settings of its optimizers; loading compares.

    Args:
        optimizer: builds the (outer) optimizer from the parameters.
        lr_scheduler: see ``EnvironmentModule``.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: SchedulerConfig | LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        checks.function(optimizer=optimizer)
        check_scheduler(lr_scheduler)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._given, self._lacks = given(self), dict[str, str]()
        self._settings: list[dict[str, Any]] = []
        self._saved_settings: list[dict[str, Any]] = []
        self._learning_rate: float | None = None

    @abstractmethod
    def trained_parameters(self) -> list[nn.Parameter]: ...  # noqa: D102

    # -- optimizer and scheduler --------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler given to ``__init__``.

        Raises:
            ValueError: if the module comes from a checkpoint of one that was given others, which it does not hold.
        """
        check_given(type(self).__name__, self._lacks)
        optimizer = self.optimizer(self.trained_parameters())
        if self.learning_rate is not None:
            with_rate(optimizer, self.learning_rate)
        if self.lr_scheduler is None:
            return optimizer
        validates = self._trainer is None or self._trainer.enable_validation
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(self.lr_scheduler, optimizer, validates)}

    @property
    def learning_rate(self) -> float | None:
        """The outer rate in place of the optimizer's own, as Lightning's ``Tuner.lr_find`` sets it; None for none."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float | None) -> None:
        checks.optional_number(minimum=0, learning_rate=rate)
        self._learning_rate = rate

    # -- checkpoints --------------------------------------------------------------------------------------------

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True) -> None:
        """Lightning's, without what only a loader that runs code could read, and in plain Python.

        From the command line, the configs of network, criterion and optimizer are among them, from which
        ``load_from_checkpoint`` builds the module anew.

        Args:
            *args: names of arguments; all that can be saved, if there are none.
            ignore: names of arguments to leave out.
            frame: of ``__init__``; the caller's, if None.
            logger: whether loggers get them, too.
        """
        caller = inspect.currentframe()
        ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
        if not args:
            configs = _of_command_line.get() or {}
            plainly = {name for name, config in configs.items() if savable(config)}
            kept = {name for name, value in arguments_of(self).items() if savable(value)} - {*UNSAVED} | plainly
            ignored += [name for name in {*UNSAVED, *arguments_of(self)} if name not in kept]
        super().save_hyperparameters(*args, ignore=ignored, frame=frame or (caller and caller.f_back), logger=logger)
        self._set_hparams(plain(self.hparams))
        self._hparams_initial = copy.deepcopy(self._hparams)

    @always
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which algorithm saved the checkpoint, and what was given to it that is no hyperparameter."""
        checkpoint["algorithm"] = type(self).__name__
        checkpoint["given"] = {name: text for name, text in self._given.items() if unsaved(name, self.hparams)}
        checkpoint["optimizer_settings"] = self._settings
        checkpoint["plateau_metrics"] = plateau_metrics(self._trainer) if self._trainer is not None else {}

    @always
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another network and, to continue training, of another configuration.

        Raises:
            ValueError: also where an argument that the checkpoint cannot hold, such as ``criterion``, is at its default
                but was not when the checkpoint was saved.
        """
        lacks = {name: text for name, text in checkpoint.get("given", {}).items() if name not in self._given}
        later = {name: lacks.pop(name) for name in ("optimizer", "lr_scheduler") if name in lacks}
        check_given(type(self).__name__, lacks)
        self._lacks = later if self._trainer is None else {}  # with a Trainer, what they build is compared
        if self._trainer is None:
            return
        if self.strict_loading:
            check_weights(self.state_dict(), checkpoint["state_dict"])
        trainer: Any = self._trainer
        if trainer.state.fn == "fit":
            check_configuration(type(self).__name__, self.hparams, self._given, checkpoint)
            self._saved_settings = checkpoint.get("optimizer_settings", [])
            trainer.callbacks.append(PlateauOfResumedEpoch(checkpoint))
            finish_epoch(checkpoint, trainer)

    @always
    def on_fit_start(self) -> None:
        """Refuses, before Lightning puts back their state, others than the checkpoint's; tells loggers."""
        self._settings = settings(self.trainer)
        saved, self._saved_settings = self._saved_settings, []
        check_settings(self._settings, saved)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(description(self, self.trainer))
