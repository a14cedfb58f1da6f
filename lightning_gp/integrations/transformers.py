"""The callbacks of this package on the ``Trainer`` of Hugging Face's transformers.

A ``Probe`` asks little of Lightning's Trainer: where training is, its optimizers, that it is one process. ``attach``
gives it that, and a LightningModule that is the model with the Trainer's own ``compute_loss``, and passes on the
Trainer's events.

    from lightning_gp.callbacks import GradientNoise, HessianEigenvalues, LearningRateBounds
    from lightning_gp.integrations.transformers import attach

    trainer = transformers.Trainer(model, arguments, train_dataset=texts)
    attach(trainer, [GradientNoise(every_n_steps=100), HessianEigenvalues(k=2), LearningRateBounds()])
    trainer.train()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.batches import copied
from lightning_gp.callbacks.cosine_similarity import CosineSimilarity
from lightning_gp.callbacks.function_loss import FunctionLoss
from lightning_gp.callbacks.isolation import forked_rng
from lightning_gp.callbacks.losses import Indexed
from lightning_gp.callbacks.phase_amplitude_consistency import PhaseAmplitudeConsistency
from lightning_gp.callbacks.probe_batch import ProbeBatch

UNKNOWN = (CosineSimilarity, PhaseAmplitudeConsistency)
"""What needs environments, or Lightning's validation."""


def attach(trainer: Any, callbacks: Sequence[Probe], batch: Any = None) -> None:
    """Lets callbacks of this package measure in ``trainer.train()``; training is bitwise what it is without them.

    The loss is ``trainer.compute_loss(model, batch)``, without autocast; values go to ``trainer.log`` and so to its
    history and its reporters, under the keys of each callback, and stay in ``callback.values``.

    Args:
        trainer: a ``transformers.Trainer`` in one process on one device.
        callbacks: any but ``CosineSimilarity`` and ``PhaseAmplitudeConsistency``; ``every_n_steps`` and
            ``every_n_epochs`` count optimizer steps and epochs of ``trainer``. ``probe_size`` cuts the batch.
        batch: to measure on; None for the first ``per_device_train_batch_size`` items of the training set, collated.

    Raises:
        ImportError: if transformers or accelerate is missing.
        TypeError: if ``trainer`` is no Trainer, or a callback no ``Probe``.
        ValueError: if a callback is one of the two, or has a ``loss_fn`` (override ``compute_loss`` instead), or two
            have the same class and prefix; for several processes or devices, DeepSpeed and FSDP. When training starts:
            if the training set has no positions and no batch is given. Before the first step: as ``Probe``.
    """
    try:
        from transformers import Trainer, TrainerCallback
    except ImportError as error:
        raise ImportError(
            "attach needs transformers and accelerate: pip install 'lightning-gp[transformers]'."
        ) from error
    if not isinstance(trainer, Trainer):
        raise TypeError(f"attach(trainer, …) takes a transformers.Trainer, got {type(trainer).__name__}.")
    arguments = trainer.args
    if arguments.world_size > 1 or arguments.n_gpu > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "Callbacks measure one process on one device here: no DeepSpeed, FSDP or several devices. With Lightning's "
            "Trainer they sum over processes: wrap the model in a LightningModule whose training_step returns its loss."
        )
    _check(callbacks)
    events = type("LightningGP", (_Events, TrainerCallback), {})
    trainer.add_callback(events(trainer, list(callbacks), batch))


def _check(callbacks: Sequence[Probe]) -> None:
    for callback in callbacks:
        if not isinstance(callback, Probe):
            raise TypeError(f"{type(callback).__name__} is no callback of this package that measures (a Probe).")
        if isinstance(callback, UNKNOWN):
            raise ValueError(
                f"{type(callback).__name__} needs environments or Lightning's validation, which transformers' Trainer "
                "does not have; GradientNoise compares the gradients of parts of a batch."
            )
        if callback.loss_fn is not None:
            raise ValueError(
                f"{type(callback).__name__} has a loss_fn, which is one of (LightningModule, batch). Leave it out: the "
                "loss is trainer.compute_loss, to be overridden in a subclass of transformers.Trainer."
            )
    keys = [callback.state_key for callback in callbacks]
    if len(set(keys)) < len(keys):
        raise ValueError("Two callbacks have the same class and prefix: give each a prefix= of its own.")


@dataclass
class _Place:
    """What callbacks ask of Lightning's Trainer."""

    optimizers: list[Optimizer]
    current_epoch: int = 0
    global_step: int = 0
    is_last_batch: bool = False
    world_size: int = 1
    global_rank: int = 0
    is_global_zero: bool = True
    strategy: object = None
    loggers: list[Any] = field(default_factory=list)


class _Module(LightningModule):
    """The model, and the loss that its Trainer computes; what is logged is kept."""

    def __init__(self, trainer: Any, place: _Place) -> None:
        super().__init__()
        self.model, self.owner, self.logged = trainer.model, trainer, dict[str, float]()
        self._trainer: Any = place
        self.train(trainer.model.training)

    @property
    def device(self) -> torch.device:
        """Of the model, which its own Trainer has moved."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Kept until the callbacks are through."""
        self.logged[name] = float(value)


def _loss(module: Any, batch: Any, index: int) -> Any:
    return module.owner.compute_loss(module.model, batch)


class _Events:
    """Passes the Trainer's events on as Lightning's."""

    def __init__(self, trainer: Any, probes: list[Probe], batch: Any) -> None:
        self.trainer, self.probes, self.given = trainer, probes, batch
        self.place = _Place([])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The loss, and the batch to measure on."""
        optimizer = self.trainer.optimizer
        self.place = _Place([getattr(optimizer, "optimizer", optimizer)])  # without accelerate's cover
        self.place.global_step = state.global_step
        module = self.module = _Module(self.trainer, self.place)
        with forked_rng(module.device, 0):
            batch = self.trainer._prepare_inputs(_first_batch(self.trainer) if self.given is None else self.given)
        for probe in self.probes:
            probe.begin()
            probe._steps_seen = state.global_step
            if not probe.needs_loss(module):
                continue
            probe.loss, probe.batch = FunctionLoss(module, _loss, "compute_loss"), ProbeBatch(probe.probe_size)
            probe.batch.offer(batch, (0, 0))
            probe.dry_run.trained = Indexed(copied(probe.batch.batches[0]), 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there; before the first step everything is tried."""
        self._moved_on(state)
        for probe in self.probes:
            probe.on_step(self.place, self.module, self.place.optimizers[0], 0)  # type: ignore[arg-type]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch ends."""
        self._moved_on(state)
        for probe in self.probes:
            probe.on_train_batch_end(self.place, self.module, {"loss": None}, None, 0)  # type: ignore[arg-type]
        self._logged()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch ends."""
        self.place.current_epoch = max(0, round(state.epoch) - 1)
        for probe in self.probes:
            probe.on_train_epoch_end(self.place, self.module)  # type: ignore[arg-type]
        self._logged()

    def _moved_on(self, state: Any) -> None:
        self.place.current_epoch, self.place.global_step = int(state.epoch or 0), state.global_step
        self.module.train(self.trainer.model.training)

    def _logged(self) -> None:
        if self.module.logged:
            values, self.module.logged = self.module.logged, {}
            self.trainer.log(values)


def _first_batch(trainer: Any) -> Any:
    """The first items of the training set, as they come to the model; no sampler is asked."""
    loader = trainer.get_train_dataloader()
    items = loader.dataset
    if not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
        raise ValueError(
            "The training set has no positions: give attach(trainer, callbacks, batch=…) one to measure on."
        )
    return loader.collate_fn([items[i] for i in islice(range(len(items)), trainer.args.train_batch_size)])
