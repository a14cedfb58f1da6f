"""A module's loss as a function of its parameters, found in one of three ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_gp._lightning import LightningModule, takes
from lightning_gp.callbacks.batches import copied, example_count
from lightning_gp.callbacks.loss_checks import STEPS, THREE_WAYS, checked, refuse_reentrant
from lightning_gp.callbacks.shards import gradients_of_shards, spread
from lightning_gp.contracts import MeasuresEnvironments, Objective
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of
from lightning_gp.functional.gradients import gradients_of_losses
from lightning_gp.types import Parameters, Split

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss_fn(module, batch)``: a scalar, or one loss per environment (E,)."""


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
        return batches if self.objective is None or self.couples_environments else self.objective.pieces(batches)

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


class FunctionLoss(ModuleLoss[Indexed]):
    """The first and the third way: a function of the module and a batch, run as it is.

    Nothing is swapped: weights that the function reaches in whatever way (a list made in ``__init__``, the optimizer's
    groups, a loss object that holds the head) are the ones that are differentiated by.
    """

    live = True

    def __init__(self, module: LightningModule, function: Callable[[Any, Any, int], Any], name: str) -> None:
        super().__init__(module)
        self.function, self.name = function, name
        self.scalar = name in STEPS

    def parameters(self) -> Parameters:
        """θ, with trainable tensors that only an optimizer knows."""
        found = super().parameters()
        known = {id(value) for value in self.module.parameters()}
        optimizers = self.module._trainer.optimizers if self.module._trainer is not None else []
        groups = (
            (f"optimizer_{i}.{j}", group)
            for i, each in enumerate(optimizers)
            for j, group in enumerate(each.param_groups)
        )
        for name, group in groups:
            for k, value in enumerate(group["params"]):
                if id(value) not in known and value.requires_grad:
                    found[f"{name}.{k}"] = value
                    known.add(id(value))
        return found

    def pieces(self, batch: object, index: int = 0) -> list[Indexed]:
        """The whole batch."""
        return [Indexed(batch, index)]

    def count(self, piece: Indexed) -> int:
        """Number of examples."""
        return example_count(piece.batch) or 1

    def losses(self, parameters: Parameters, piece: Indexed, split: Split = "query") -> Tensor:
        """The function's value at the module's own parameters."""
        # A step may change its batch in place.
        losses = self.checked(self.function(self.module, copied(piece.batch), piece.position), self.name)
        self.scalar = losses.ndim == 0
        thawed = super().parameters().keys() - parameters.keys()
        if thawed:
            raise ValueError(
                f"{self.name} thaws parameters while it runs: {', '.join(sorted(thawed)[:5])}. A probe differentiates "
                "by those that require gradients before; set requires_grad in a hook, such as on_train_batch_start."
            )
        return losses

    def gradients(self, parameters: Parameters, piece: Indexed, split: Split = "query") -> Parameters:
        """Of sharded parameters ``Parts``, of the losses of all processes one after the other; every process calls it.

        Of a scalar loss then: the sum over processes of its gradient times ``count(piece)``.
        """
        if not spread(self.module):
            return super().gradients(parameters, piece, split)
        return gradients_of_shards(
            lambda: self.losses(parameters, piece, split).reshape(-1),
            parameters,
            self.module,
            lambda: self.count(piece) if self.scalar else None,
        )


AnyLoss: TypeAlias = ModuleLoss[Any]
"""The losses of environments, or of whole batches."""


def find_loss(module: LightningModule, loss_fn: LossFunction | None, owner: str) -> AnyLoss:
    """The loss of any LightningModule.

    Args:
        module: the module.
        loss_fn: the user's choice, or None.
        owner: name of the callback that asks.

    Raises:
        ValueError: if there is no way; the message names all three.
    """
    if loss_fn is not None:
        return FunctionLoss(module, lambda module, batch, index: loss_fn(module, batch), "loss_fn")
    if isinstance(module, MeasuresEnvironments):
        return EnvironmentLoss(module)
    if not module.automatic_optimization:
        raise ValueError(
            f"{owner} cannot tell what {type(module).__name__} minimises: with automatic_optimization=False its "
            f"training_step steps the optimizers itself and must not be run by a probe. {THREE_WAYS}"
        )
    if takes(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{owner} cannot run {type(module).__name__}.training_step(dataloader_iter), which fetches its own data. "
            f"{THREE_WAYS}"
        )
    return FunctionLoss(module, _training_step, "training_step")


def _training_step(module: LightningModule, batch: object, index: int) -> Any:
    """What Lightning calls, as Lightning calls it."""
    with_index = takes(module.training_step, "batch_idx", min_args=2)
    return loss_of(module.training_step(batch, index) if with_index else module.training_step(batch))


def loss_of(output: Any) -> Any:
    """The loss in what a step returns: the tensor itself, or the one under ``"loss"``.

    Raises:
        Skipped: if it is None.
    """
    if output is None:
        raise Skipped
    return output["loss"] if isinstance(output, Mapping) and "loss" in output else output
