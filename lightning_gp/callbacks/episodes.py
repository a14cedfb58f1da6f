"""``EpisodeProbe``: a probe that also measures in ``trainer.validate`` and ``trainer.test``, episode by episode."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.base import ALONE, Probe
from lightning_gp.callbacks.batches import copied
from lightning_gp.callbacks.episode_values import EpisodeValues, mean_and_interval
from lightning_gp.callbacks.evaluation_loss import EvaluationStep, find_evaluation_loss, no_loss
from lightning_gp.callbacks.isolation import isolated
from lightning_gp.callbacks.losses import AnyLoss, Piece, Skipped
from lightning_gp.callbacks.measurement import Measurement
from lightning_gp.callbacks.strategies import check_strategy
from lightning_gp.contracts import MeasuresEnvironments
from lightning_gp.environments import as_batches
from lightning_gp.functional.processes import Ranks
from lightning_gp.types import Split


class EpisodeProbe(Probe):
    """A ``Probe`` that, with ``episodes=N``, also measures N episodes of ``trainer.validate`` and ``trainer.test``.

    **An episode** is one environment, measured alone; for a ``loss_fn`` and for modules without environments it is one
    batch. The loop's own batches are measured, from the first on, right after the module's step: at the unadapted
    parameters, in the mode in which the step runs (``eval``), with gradients on although Lightning runs the loop in
    inference mode.

    **Values**: each number that the callback logs in training is logged as ``val/<key>`` or ``test/<key>``, its mean
    over episodes, with ``<key>_ci95``, the half-width of the 95 % interval of this mean (Student's t; NaN for a single
    episode). ``val/episodes/<class name>`` is their number. Several loaders are told apart by
    ``/dataloader_idx_<i>`` at the end of each key. Full precision is in ``callback.evaluated``. Pictures are not drawn.

    **The loss** is that of ``loss_fn``, of the module's ``environment_losses``, or for any other module what its
    ``validation_step`` or ``test_step`` returns, which is run once more.

    **The evaluation is bitwise what it is without the callback**, as in ``Probe``; at the first episode it is compared.
    Nothing is measured in the sanity check before a fit.

    **Processes** measure their own episodes, N in all (rounded up to a multiple of the processes), and all log the same
    mean and interval.

    Args:
        episodes: N ≥ 1, of each loader; None to measure in training only.
        during_fit: measure N episodes of each validation during a fit, too.
        **kwargs: see ``Probe``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range. In ``setup``: if ``split="support"`` is asked of a module without
            environments. At the first episode: if the module's step returns no loss, or changes what cannot be put
            back.
        RuntimeError: at the first episode, if the module keeps tensors that were made in inference mode.
    """

    split: Split = "query"
    """The sets that are measured, where the module has environments."""

    def __init__(self, episodes: int | None = None, during_fit: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.optional_whole(1, episodes=episodes)
        checks.flag(during_fit=during_fit)
        if during_fit and episodes is None:
            raise ValueError("during_fit=True measures in each validation of a fit; say how much: episodes=100.")
        self.episodes, self.during_fit = episodes, during_fit
        self.evaluated: dict[str, float] = {}
        self.evaluation_loss: AnyLoss | None = None
        self._step: EvaluationStep | None = None
        self._numbers = EpisodeValues(0)
        self._taken: tuple[object, int] | None = None

    # -- for subclasses -----------------------------------------------------------------------------------------

    def measure_episode(self, measurement: Measurement) -> Mapping[str, float]:
        """The numbers of one episode, without prefix; by default those of ``measure``.

        It runs inside ``isolated``, on a copy of the callback for which ``begin`` was called: episodes are independent,
        and training goes on from its own.
        """
        return self.measure(measurement).values

    # -- Lightning's hooks --------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also finds the loss in evaluation."""
        super().setup(trainer, pl_module, stage)
        self._step = self.evaluation_loss = self._taken = None
        owner = type(self).__name__
        if self.episodes is not None and (stage in ("validate", "test") or (stage == "fit" and self.during_fit)):
            check_strategy(trainer.strategy, f"{owner}(episodes=...)", works=False)
            name = "test_step" if stage == "test" else "validation_step"
            self.evaluation_loss, self._step = find_evaluation_loss(pl_module, self.loss_fn, owner, name)
            self._numbers = EpisodeValues(self.episodes)
        if self.split != "query" and (self.loss_fn is not None or not isinstance(pl_module, MeasuresEnvironments)):
            raise ValueError(
                f"split={self.split!r} asks for one of the two sets of an environment, but {owner} measures "
                f"{'loss_fn' if self.loss_fn else type(pl_module).__name__}, which has a single loss. Leave "
                "split='query', or give the module a method environment_losses(parameters, environments, split)."
            )

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        """Copies the batch, before the step could change it."""
        fitting = trainer.state.fn == "fit"
        waits = self.evaluation_loss is not None and not trainer.sanity_checking and (self.during_fit or not fitting)
        if waits and self._missing(trainer, dataloader_idx) > 0:
            with torch.inference_mode(False):  # otherwise autograd could not record the copy
                self._taken = copied(batch), batch_idx

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        """Measures its episodes."""
        if self._taken is None or self.evaluation_loss is None:
            return
        if self._step is not None:
            self._step.loader = dataloader_idx
        (taken, index), self._taken = self._taken, None
        ranks = Ranks(trainer, pl_module.device)
        owner, first = type(self).__name__, not len(self._numbers)
        # The snapshot, too, is made outside of inference mode, so that it can be written back inside.
        with (
            torch.inference_mode(False),
            isolated(pl_module, apart=ALONE, verify=owner if first else "", loss_fn=self.loss_fn),
        ):
            for piece in _episodes(self.evaluation_loss, taken, index):
                if self._missing(trainer, dataloader_idx) <= 0:
                    break
                try:
                    self._numbers.add(dataloader_idx, self._measured(self.evaluation_loss, piece, ranks))
                except Skipped:
                    if first:
                        raise no_loss(pl_module, owner, self._step.name if self._step else "loss_fn") from None

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs means and intervals."""
        self._log_evaluation(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs means and intervals."""
        self._log_evaluation(trainer, pl_module, "test")

    # -- one evaluation -----------------------------------------------------------------------------------------

    def _missing(self, trainer: Trainer, loader: int | None) -> int:
        shared = self.evaluation_loss is not None and self.evaluation_loss.shares_examples
        return self._numbers.missing(loader, 1 if shared else trainer.world_size)

    def _measured(self, loss: AnyLoss, piece: Piece, ranks: Ranks) -> Mapping[str, float]:
        # Processes may have different numbers of episodes, so they sum nothing, unless each holds a part of this one.
        ranks = ranks if loss.shares_examples else ranks.alone()
        probe = copy.copy(self)
        probe.begin()
        try:
            if not len(self._numbers):
                probe.check(loss, piece)
            return probe.measure_episode(Measurement.of_pieces(loss, [piece], ranks, _nothing))
        except RuntimeError as error:
            if "inference" not in str(error).lower():
                raise
            raise RuntimeError(
                f"{type(self).__name__} differentiates in evaluation, but {type(loss.module).__name__} keeps tensors "
                "that were made in inference mode, which autograd cannot record. Use Trainer(inference_mode=False)."
            ) from error

    def _log_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.evaluation_loss is None or trainer.sanity_checking or self.episodes is None:
            return
        ranks = Ranks(trainer, pl_module.device)
        everything = self._numbers.gathered(ranks.alone() if self.evaluation_loss.shares_examples else ranks)
        self._numbers = EpisodeValues(self.episodes)
        if not everything:
            return
        self.evaluated = {}
        for loader, rows in everything.items():
            end = "" if loader is None else f"/dataloader_idx_{loader}"
            for key in rows[0]:
                mean, half_width = mean_and_interval([row[key] for row in rows])
                self.evaluated[f"{self.prefix}{stage}/{key}{end}"] = mean
                self.evaluated[f"{self.prefix}{stage}/{key}_ci95{end}"] = half_width
            self.evaluated[f"{self.prefix}{stage}/episodes/{type(self).__name__}{end}"] = float(len(rows))
        # All processes have the same values; sync_dist only keeps Lightning from warning about them.
        options: dict[str, Any] = {"batch_size": 1, "sync_dist": ranks.world > 1}
        for key, value in self.evaluated.items():
            pl_module.log(key, value, on_step=False, on_epoch=True, add_dataloader_idx=False, **options)


def _episodes(loss: AnyLoss, batch: Any, index: int) -> Iterator[Piece]:
    """One environment at a time, or the whole batch."""
    if loss.by_environment:
        yield from (one for environments in as_batches(batch) for one in environments.chunks(1))
    else:
        yield from loss.pieces(batch, index)


def _nothing() -> None:
    """A piece begins with what the isolation has found; there is no other piece before it."""
