"""The module under test and its data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.testing.runs import Data, first_batches, fit, seeded, state_of


class Subject:
    """A module and its data, made anew as often as needed.

    Args:
        make_module: builds the module.
        make_data: builds its data.
        folder: for checkpoints.
    """

    def __init__(
        self, make_module: Callable[[], EnvironmentModule], make_data: Callable[[], Data], folder: Path
    ) -> None:
        self.make_module, self.data, self.folder = make_module, make_data, folder

    def module(self) -> EnvironmentModule:
        """A new module with the same weights each time."""
        seeded()
        return self.make_module().double()

    @cached_property
    def batch(self) -> list[Environments]:
        """The first training batch."""
        return first_batches(self.data())[0]

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """Parameters and buffers after a run that leaves a checkpoint of every step in ``folder``."""
        module = self.module()
        fit(module, self.data(), self.folder)
        return state_of(module)

    @cached_property
    def random(self) -> bool:
        """Whether a step draws random numbers."""
        module = self.module()
        module.training_loss(self.batch)
        before = torch.get_rng_state()
        module.training_loss(self.batch)
        return not torch.equal(before, torch.get_rng_state())
