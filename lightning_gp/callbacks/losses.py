"""A module's loss as a function of its parameters, found in one of three ways."""

from __future__ import annotations

from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks.loss_checks import checked, refuse_reentrant
from lightning_gp.contracts import MeasuresEnvironments, Objective
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of
from lightning_gp.functional.gradients import gradients_of_losses
from lightning_gp.types import Parameters, Split


class Skipped(Exception):  # noqa: N818 (no error: the module says so)
    """A step returned None: it passes over this batch."""


class Indexed(NamedTuple):
    """A batch of any type with the index that it had in its epoch."""

    batch: Any
    position: int


Piece: TypeAlias = Environments | Indexed
"""What is computed at once: some environments, or one batch."""
P = TypeVar("P", Environments, Indexed)


class ModuleLoss(Generic[P]):
    """The losses of a module on pieces of a probe batch, as functions of its parameters.

    Attributes:
        by_environment: whether the module speaks ``Environments``.
        scalar: whether the loss is one number for a whole batch; known after the first evaluation.
        live: whether the loss is computed from the module's own parameters, whatever dict it is given: then that must
            be ``parameters()``, and the loss is differentiated by these very tensors.
    """

    by_environment = False
    scalar = False
    live = False

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self._looked_into = False

    def checked(self, losses: object, name: str, environments: int | None = None) -> Tensor:
        """``losses`` in at least float32, if they are what was asked for; the first time, their graph is looked into.

        Args:
            losses: what the module gave.
            name: of what gave it.
            environments: how many there are, or None.

        Raises:
            ValueError: if they cannot be differentiated by the parameters.
        """
        values = checked(losses, name, environments)
        if not self._looked_into:
            refuse_reentrant(values, name)
            self._looked_into = True
        return values

    def parameters(self) -> Parameters:
        """θ: the trainable parameters by name, the very tensors that training changes."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    def pieces(self, batch: object, index: int = 0) -> list[P]:
        """The batch in parts that are computed at once.

        Args:
            batch: of the type that training takes.
            index: the index that it had in its epoch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pieces(batch, index).")

    @property
    def shares_examples(self) -> bool:
        """Whether other processes hold more examples of the same environments."""
        return False

    def count(self, piece: P) -> int:
        """How much a piece weighs in a mean: its number of environments, or of examples."""
        raise NotImplementedError(f"{type(self).__name__} must define count(piece).")

    def losses(self, parameters: Parameters, piece: P, split: Split = "query") -> Tensor:
        """One loss per environment (E,), or a scalar ().

        Raises:
            Skipped: if the module passes over this batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses(parameters, piece, split).")

    def objectives(self, parameters: Parameters, piece: P) -> Tensor:
        """What training minimises, shaped as ``losses``."""
        return self.losses(parameters, piece)

    def gradients(self, parameters: Parameters, piece: P, split: Split = "query") -> Parameters:
        """∇L_τ(θ) of each environment, tensors (E, *shape); E = 1 for a scalar loss."""
        return gradients_of_losses(lambda theta: self.losses(theta, piece, split).reshape(-1), parameters)


class EnvironmentLoss(ModuleLoss[Environments]):
    """The second way: ``module.environment_losses``.

    Attributes:
        measured: the module.
        objective: the module, if it also says what training minimises.
    """

    by_environment = True

    def __init__(self, module: LightningModule) -> None:
        super().__init__(module)
        assert isinstance(module, MeasuresEnvironments)
        self.measured: MeasuresEnvironments = module
        self.objective = module if isinstance(module, Objective) else None

    def parameters(self) -> Parameters:
        """The network's trainable parameters."""
        return {name: value for name, value in self.complete({}).items() if value.requires_grad}

    def pieces(self, batch: EnvironmentBatch, index: int = 0) -> list[Environments]:  # type: ignore[override]
        """Chunks of environments, cut as training cuts them where the module knows how; coupled ones are not cut."""
        batches = as_batches(batch)
        if self.objective is None:
            return batches
        pieces = self.objective.pieces(batches)  # which also finds out how many environments vmap can take
        return batches if self.couples_environments else pieces

    @property
    def couples_environments(self) -> bool:
        """Whether the objective is no mean over environments."""
        return self.objective is not None and self.objective.couples_environments

    @property
    def shares_examples(self) -> bool:
        """As the objective says."""
        return self.objective is not None and self.objective.shares_examples

    def count(self, piece: Environments) -> int:
        """Number of environments."""
        return count_of(piece)

    def losses(self, parameters: Parameters, piece: Environments, split: Split = "query") -> Tensor:
        """(E,), at the unadapted parameters."""
        values = self.measured.environment_losses(self.complete(parameters), piece, split)
        return self.checked(values, "environment_losses", count_of(piece))

    def objectives(self, parameters: Parameters, piece: Environments) -> Tensor:
        """(E,), adapted where the module adapts."""
        if self.objective is None:
            return self.losses(parameters, piece)
        values = self.objective.environment_objectives(self.complete(parameters), piece)
        return self.checked(values, "environment_objectives", count_of(piece))

    def gradients(self, parameters: Parameters, piece: Environments, split: Split = "query") -> Parameters:
        """One environment at a time, so that E environments cost E forward and backward passes."""
        each = [
            gradients_of_losses(partial(self.losses, piece=one, split=split), parameters) for one in piece.chunks(1)
        ]
        return {name: torch.cat([gradient[name] for gradient in each]) for name in parameters}

    def complete(self, parameters: Parameters) -> Parameters:
        """``parameters`` with the frozen parameters, which the network needs too."""
        own = dict(self.module.named_parameters()) if self.objective is None else self.objective.network_parameters()
        return {**own, **parameters}


AnyLoss: TypeAlias = ModuleLoss[Any]
"""The losses of environments, or of whole batches."""
