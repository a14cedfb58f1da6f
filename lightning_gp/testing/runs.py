"""Short trainings in float64 on the CPU, and how to compare what they leave."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gp._lightning import NAMESPACE, Callback, LightningDataModule, LightningModule, pl
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches

Data: TypeAlias = "LightningDataModule | DataLoader[Any] | Sequence[EnvironmentBatch]"
"""A data module, a loader of batches, or the batches themselves."""
EPOCHS, BATCHES = 2, 3
"""Of a training: long enough that it is interrupted inside an epoch, and before the last one."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks on the hardware and on what a checkpoint was made by."""
    logger = logging.getLogger(f"{NAMESPACE}.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def seeded() -> None:
    """The same random numbers from here on, in Python, numpy and torch."""
    pl.seed_everything(0, verbose=False)


def scramble(seed: int) -> None:
    """Other random numbers in Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # the global state is what is meant
    torch.manual_seed(seed)


def loader_of(data: Data) -> LightningDataModule | DataLoader[Any]:
    """What a Trainer takes."""
    return data if isinstance(data, (LightningDataModule, DataLoader)) else DataLoader(list(data), batch_size=None)  # type: ignore[arg-type]  # a list is a map-style dataset


def fit(
    module: LightningModule,
    data: Data,
    folder: Path | None = None,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int = 1,
) -> Any:
    """A training of ``EPOCHS`` epochs of at most ``BATCHES`` batches.

    Args:
        module: what to train.
        data: on what.
        folder: where a checkpoint of each step is left, ``step=<n>.ckpt``; None for none.
        resume: the checkpoint to go on with.
        callbacks: to attach.
        devices: number of processes, of which this is one.

    Returns:
        The Trainer.
    """
    saving = (
        [] if folder is None else [pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    )
    seeded()
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision="64-true",
            max_epochs=EPOCHS,
            limit_train_batches=BATCHES,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            callbacks=[*callbacks, *saving],
            logger=False,
            enable_checkpointing=bool(saving),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader_of(data), ckpt_path=resume)
    return trainer


def middle(folder: Path) -> Path:
    """A checkpoint inside the first epoch of a run, where an epoch has several steps."""
    steps = sorted(int(path.stem.partition("=")[2]) for path in folder.glob("step=*.ckpt"))
    return folder / f"step={steps[max(0, len(steps) // 2 - 2)]}.ckpt"


def state_of(module: LightningModule) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What differs bitwise, in words; empty if nothing does."""
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    if not different:
        return ""
    largest = max((float((found[name] - expected[name]).abs().max()), name) for name in different)
    return f"{len(different)} of {len(expected)} tensors, by up to {largest[0]:.3g} in {largest[1]}"


def relative(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖ over all tensors together."""
    apart = torch.stack([(found[name] - value).double().norm() for name, value in expected.items()]).norm()
    return float(apart / torch.stack([value.double().norm() for value in expected.values()]).norm())


def first_batches(data: Data, count: int = 1) -> list[list[Environments]]:
    """The first training batches as a module gets them, epoch after epoch, each a list of environments in float64."""
    if not isinstance(data, LightningDataModule):
        return [doubled(batch) for batch, _ in zip(data, range(count), strict=False)]
    data.prepare_data()
    data.setup("fit")
    found: list[list[Environments]] = []
    epoch = 0
    while len(found) < count:
        loader = data.train_dataloader()
        if isinstance(loader.sampler, torch.utils.data.DistributedSampler):
            loader.sampler.set_epoch(epoch)
        found += [
            doubled(data.on_after_batch_transfer(batch, 0))
            for batch, _ in zip(loader, range(count - len(found)), strict=False)
        ]
        epoch += 1
    return found


def doubled(batch: EnvironmentBatch) -> list[Environments]:
    """The batch as a list, its floating-point numbers in float64."""
    return [each.map(lambda x: x.double() if x.is_floating_point() else x) for each in as_batches(batch)]
