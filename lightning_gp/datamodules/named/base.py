"""What data modules share that have a few named environments with all their examples in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_gp._lightning import LightningDataModule
from lightning_gp.checks import number, optional_whole, whole
from lightning_gp.contracts import Dealt
from lightning_gp.datamodules.loader import ResumableLoader, ResumableSampler, as_it_is, replicas_of
from lightning_gp.datamodules.named.pieces import (
    MiniBatches,
    Pieces,
    check_environments,
    hold_out,
    left_out,
    only_item,
)
from lightning_gp.hyperparameters import save_plain_hyperparameters
from lightning_gp.types import Examples


class NamedEnvironmentsDataModule(LightningDataModule):
    """Base of the data modules with a fixed list of environments; a subclass defines ``make_environments``.

    Position e of every batch is environment e, and ``environment_names`` says what it is called. Test environments are
    seen by ``trainer.test`` only. Validation uses examples of the *training* environments: held out if ``val_fraction``
    is above 0, otherwise the training examples themselves, so that ``val/…`` then is the accuracy on training data.

    Batches are full by default: every environment whole, in every step. With ``batch_size`` a step draws that many
    examples of *each* environment; an epoch is one pass over the largest, the smaller ones start over. Several devices
    get equal shares of every environment (``dealt="shares"``).

    Args:
        val_fraction: share of each training environment that is held out for validation.
        batch_size: examples of each environment per step, over all devices; None for the full batch.
        eval_batch_size: about how many examples of each environment to evaluate at once; None for all.
        steps_per_epoch: of full batches, how often one epoch repeats them: Lightning validates between epochs.
        seed: of the held-out examples and of the order of mini-batches.
        leave_out: name of the training environment that is left out of training and validated on in its place. One run
            for each of them is leave-one-environment-out validation: it asks for what no training environment can say.

    Raises:
        ValueError: if a number is out of range.
    """

    dealt: Dealt = "shares"

    def __init__(
        self,
        val_fraction: float = 0.0,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        steps_per_epoch: int = 1,
        seed: int = 0,
        leave_out: str | None = None,
    ) -> None:
        super().__init__()
        number(minimum=0, val_fraction=val_fraction)
        if val_fraction >= 1:
            raise ValueError(f"val_fraction={val_fraction!r} must be at least 0 and below 1.")
        full = "use None for all examples at once"
        optional_whole(1, hint=full, batch_size=batch_size, eval_batch_size=eval_batch_size)
        whole(1, steps_per_epoch=steps_per_epoch)
        whole(0, seed=seed)
        save_plain_hyperparameters(self, ["train", "val", "test"])
        self.val_fraction = val_fraction
        self.batch_size = None if batch_size is None else int(batch_size)  # DataLoader takes no numpy integers
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = int(seed)
        self.leave_out = leave_out
        if leave_out is not None and val_fraction > 0:
            raise ValueError(
                f"leave_out={leave_out!r} validates on that environment, val_fraction={val_fraction!r} on examples of "
                "all others: give one of them."
            )
        self._splits: dict[str, dict[str, Examples]] = {}
        self._on_device: dict[int, Any] = {}

    def make_environments(self) -> Mapping[str, Mapping[str, Examples]]:
        """The environments by split (``"train"``, ``"test"``, perhaps ``"val"``) and name: x (K, …) and y (K, …)."""
        raise NotImplementedError(f"{type(self).__name__} must define make_environments().")

    def setup(self, stage: str | None = None) -> None:
        """Builds all environments, once."""
        if self._splits:
            return
        splits = {split: dict(environments) for split, environments in self.make_environments().items()}
        for split, environments in splits.items():
            check_environments(environments, split)
        if self.leave_out is not None:
            splits["val"] = {self.leave_out: left_out(splits, self.leave_out)}
        elif "val" not in splits:
            splits["train"], splits["val"] = hold_out(splits["train"], self.val_fraction, self.seed)
        self._splits = splits

    @property
    def environment_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the environments of each split, in the order of the batches."""
        self.setup()
        return {split: tuple(environments) for split, environments in self._splits.items()}

    def environments(self, split: str) -> dict[str, Examples]:
        """All examples of a split, by environment."""
        self.setup()
        if split not in self._splits:
            raise ValueError(f"There are no {split!r} environments; there are {sorted(self._splits)}.")
        return self._splits[split]

    # -- loaders ------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Full batches, or shuffled mini-batches."""
        environments, replicas = list(self.environments("train").values()), replicas_of(self.trainer)
        if self.batch_size is None:
            shares = Pieces(environments, replicas["num_replicas"], self.steps_per_epoch)
            return self._piecewise(shares, replicas)
        largest, devices = max(len(y) for _, y in environments), replicas["num_replicas"]
        if self.batch_size > largest or self.batch_size % devices:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of the {devices} devices and at most {largest}, the "
                "size of the largest environment; use None for full batches."
            )
        examples = MiniBatches(environments)
        return ResumableLoader(
            examples,
            batch_size=self.batch_size // devices,
            sampler=ResumableSampler(examples, shuffle=True, seed=self.seed, drop_last=True, **replicas),
            collate_fn=as_it_is,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Examples of the training environments."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test environments."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[Any]:
        environments, replicas = list(self.environments(split).values()), replicas_of(self.trainer)
        sizes = [len(y) for _, y in environments]
        devices = replicas["num_replicas"]
        pieces = 1 if self.eval_batch_size is None else math.ceil(max(sizes) / (self.eval_batch_size * devices))
        return self._piecewise(Pieces(environments, devices * max(1, min(pieces, min(sizes) // devices))), replicas)

    def _piecewise(self, pieces: Pieces, replicas: dict[str, Any]) -> DataLoader[Any]:
        # Each rank walks its own pieces, in order.
        sampler = ResumableSampler(pieces, **replicas, shuffle=False)
        return ResumableLoader(pieces, batch_size=1, sampler=sampler, collate_fn=only_item)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's own, but the full training batch is moved once and kept."""
        if self.batch_size is not None or device.type == "cpu" or self.trainer is None or not self.trainer.training:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if id(batch) not in self._on_device:
            self._on_device = {id(batch): super().transfer_batch_to_device(batch, device, dataloader_idx)}
        return self._on_device[id(batch)]
