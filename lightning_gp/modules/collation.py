"""Batches of environments that a DataLoader has put together once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

from lightning_gp._lightning import Trainer
from lightning_gp.environments import Environments
from lightning_gp.types import Parameters


class Predicting(Protocol):
    """What is needed of a module."""

    def network_parameters(self) -> Parameters: ...  # noqa: D102
    def predict(self, parameters: Parameters, x: Tensor) -> Tensor: ...  # noqa: D102


def check_collation(module: Predicting, environments: Environments, loaders: Sequence[Any]) -> None:
    """Refuses batches of environments that a DataLoader has put together once more, under one more axis.

    A data set of whole batches needs ``DataLoader(..., batch_size=None)``; its default of 1 makes of E environments the
    examples of a single one. It shows in that the network treats the axis behind that of the examples as examples, too.

    Raises:
        ValueError: naming the shape and the remedy.
    """
    x, y = environments.support
    sizes = [
        loader.batch_size
        for loader in loaders
        if isinstance(loader, DataLoader) and loader.batch_size is not None and loader.collate_fn is default_collate
    ]
    if not sizes or x.ndim < 4 or y.ndim < 3 or x.shape[2] != y.shape[2]:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        try:
            parameters = module.network_parameters()
            whole = module.predict(parameters, x[0])
            part = module.predict(parameters, x[0][:, :1])
        except (RuntimeError, ValueError, IndexError):
            return  # what the network cannot compute, it refuses by itself
    if whole.ndim > 2 and torch.allclose(whole[:, :1], part, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"The DataLoader has put whole batches of environments together (batch_size={sizes[0]}): x has "
            f"shape {tuple(x.shape)}, and its {x.shape[1]} environments would be taken for the examples of one. Give "
            "DataLoader(..., batch_size=None), which leaves items as they are; for items that are single environments "
            "of examples with several axes, give collate_fn=lightning_gp.environments.stack."
        )


def loaders_of(trainer: Trainer) -> list[Any]:
    """The data loaders of the stage that a trainer is in."""
    stages = (
        (trainer.training, trainer.train_dataloader),
        (trainer.validating or trainer.sanity_checking, trainer.val_dataloaders),
        (trainer.testing, trainer.test_dataloaders),
        (trainer.predicting, trainer.predict_dataloaders),
    )
    return [loader for active, loaders in stages if active for loader in pytree.tree_leaves(loaders)]
