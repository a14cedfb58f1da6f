"""Environments with all their examples in memory, as datasets whose items make up batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import Dataset

from lightning_gp.environments import EnvironmentBatch, Environments
from lightning_gp.types import Examples


class Pieces(Dataset[EnvironmentBatch]):
    """Every environment cut into ``pieces`` of equal size up to one example; item i is piece i modulo ``pieces``.

    Args:
        environments: x (K, …), y (K, …) of each environment.
        pieces: into how many to cut.
        repeat: how often to go through all of them.

    Raises:
        ValueError: if an environment has fewer examples than pieces.
    """

    def __init__(self, environments: Sequence[Examples], pieces: int, repeat: int = 1) -> None:
        smallest = min(len(y) for _, y in environments)
        if smallest < pieces:
            raise ValueError(f"An environment has {smallest} examples, too few for {pieces} devices to share.")
        cut = [(x.tensor_split(pieces), y.tensor_split(pieces)) for x, y in environments]
        self.batches = [as_batch([(xs[i], ys[i]) for xs, ys in cut]) for i in range(pieces)]
        self.repeat = repeat

    def __len__(self) -> int:
        return len(self.batches) * self.repeat

    def __getitem__(self, index: int) -> EnvironmentBatch:
        return self.batches[index % len(self.batches)]


class MiniBatches(Dataset[Environments]):
    """Item i is example i of every environment (modulo its size); several items make one stacked batch."""

    def __init__(self, environments: Sequence[Examples]) -> None:
        self.environments = environments

    def __len__(self) -> int:
        return max(len(y) for _, y in self.environments)

    def __getitems__(self, indices: Sequence[int]) -> Environments:
        rows = torch.tensor(indices)
        chosen = [(x[rows % len(y)], y[rows % len(y)]) for x, y in self.environments]
        return Environments((torch.stack([x for x, _ in chosen]), torch.stack([y for _, y in chosen])))


def as_batch(environments: Sequence[Examples]) -> EnvironmentBatch:
    """One stacked ``Environments`` if all sizes are equal, otherwise a list of them with E = 1."""
    if len({len(y) for _, y in environments}) == 1:
        return Environments((torch.stack([x for x, _ in environments]), torch.stack([y for _, y in environments])))
    return [Environments((x.unsqueeze(0), y.unsqueeze(0))) for x, y in environments]


def hold_out(
    environments: Mapping[str, Examples], fraction: float, seed: int
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """Training and validation part of each environment; both are everything if ``fraction`` is 0.

    Raises:
        ValueError: if a part would be empty.
    """
    if fraction == 0:
        return dict(environments), dict(environments)
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Examples] = {}
    held: dict[str, Examples] = {}
    for name, (x, y) in environments.items():
        count = round(fraction * len(y))
        if not 0 < count < len(y):
            raise ValueError(
                f"val_fraction={fraction} of the {len(y)} examples of environment {name!r} is {count}; both parts need "
                "at least one example."
            )
        order = torch.randperm(len(y), generator=generator)
        held[name] = x[order[:count]], y[order[:count]]
        kept[name] = x[order[count:]], y[order[count:]]
    return kept, held


def left_out(splits: Mapping[str, dict[str, Examples]], name: str) -> Examples:
    """Takes a training environment out of training.

    Raises:
        ValueError: if there is none of that name, none would be left, or there are validation environments already.
    """
    train = splits["train"]
    if name not in train:
        raise ValueError(f"leave_out={name!r} names no training environment; there are {sorted(train)}.")
    if len(train) == 1:
        raise ValueError(f"leave_out={name!r} is the only training environment; nothing would be left to train on.")
    if "val" in splits:
        given = sorted(splits["val"])
        raise ValueError(f"leave_out={name!r}, but there are validation environments {given} already; give one.")
    return train.pop(name)


def check_environments(environments: Mapping[str, Examples], split: str) -> None:
    """Refuses environments that are missing, empty, or do not fit together.

    Raises:
        ValueError: naming the environment and the shapes.
    """
    if not environments:
        raise ValueError(f"There is no {split} environment; give at least one (at least two to train IRM).")
    first, (x0, y0) = next(iter(environments.items()))
    for name, (x, y) in environments.items():
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ValueError(f"Environment {name!r} has x {tuple(x.shape)} and y {tuple(y.shape)}: unequal lengths.")
        if len(y) == 0:
            raise ValueError(f"Environment {name!r} is empty; every environment needs examples.")
        if x.shape[1:] != x0.shape[1:] or y.shape[1:] != y0.shape[1:]:
            raise ValueError(
                f"Environment {name!r} has examples x {tuple(x.shape[1:])}, y {tuple(y.shape[1:])}, but {first!r} has "
                f"x {tuple(x0.shape[1:])}, y {tuple(y0.shape[1:])}; only the number of examples may differ."
            )


def only_item(batch: list[EnvironmentBatch]) -> EnvironmentBatch:
    """The one piece of a batch."""
    return batch[0]
