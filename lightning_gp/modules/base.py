"""``EnvironmentModule``, what every algorithm of this package is and what users subclass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import checks
from lightning_gp.contracts import Dealt, Key, with_keys
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of
from lightning_gp.functional.cheap_layers import cheap_layers
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.precomputed import Evaluation as Evaluate
from lightning_gp.functional.precomputed import accumulated, differentiated
from lightning_gp.modules.aggregation import aggregated_terms, named_weights, weighting_of
from lightning_gp.modules.annotations import inherit_annotations
from lightning_gp.modules.checks import check_network, check_trainer
from lightning_gp.modules.chunking import Vectorize, channels_last, check_vectorize, chunk_size, has_convolutions
from lightning_gp.modules.hooks import always, complete_hooks
from lightning_gp.modules.objective import EnvironmentObjective
from lightning_gp.modules.trial import try_batch
from lightning_gp.types import (
    Criterion,
    LRSchedulerCallable,
    OptimizerCallable,
    SchedulerConfig,
    Weighting,
    WeightingName,
)


class EnvironmentModule(EnvironmentObjective):
    """Minimises the mean over environments of an objective, mean_τ L̃_τ(θ).

    The extension points, in the order in which they are called; override any of them:

    1. ``predict(parameters, x)`` – the network with the given parameters on one environment's inputs.
    2. ``loss(parameters, x, y)`` – the scalar loss of one environment.
    3. ``environment_losses(parameters, environments, split)`` – (E,), the losses at the *unadapted* parameters; what
       callbacks differentiate.
    4. ``environment_objectives(parameters, environments)`` – (E,), what training minimises: the sum of
       ``environment_terms``, by name and each logged as ``train/<name>``, weighted by ``term_weights``.
    5. ``measure(parameters, x, y)`` and ``evaluate(environments)`` – what validation and test report.
    6. ``configure_optimizers()`` – Lightning's own.

    Here the objective is the loss itself: empirical risk minimisation.

    {keys}

    Args:
        network: the network; its parameters are θ. Normalisation layers must not keep running statistics.
        criterion: maps predictions (K, ...) and targets (K, ...) to a scalar mean.
        optimizer: builds the (outer) optimizer from the parameters.
        lr_scheduler: builds a learning-rate scheduler from the optimizer, or a dictionary as Lightning's own with that
            function as ``"scheduler"`` (``modules.schedulers``), or None.
        vectorize: how many environments to compute at once: ``"auto"``, True, False or a number (``modules.chunking``).
        weighting: w of Σ_τ w_τ L̃_τ, a constant in each step: ``"mean"``, ``"group_dro"``, ``"mgda"``, ``"pcgrad"``,
            ``"upgrad"`` (``functional.weightings``), or any function of the objectives (E,) and of the Gram matrix
            (E, E) of their gradients. All but the mean compute one environment after the other, and keep the gradient
            of each.

    Raises:
        ValueError: if an argument is out of range, or the network keeps running statistics.

    Example:
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = EnvironmentModule(SinusoidMLP(), criterion=F.mse_loss)
        >>> x = torch.zeros(3, 10, 1)
        >>> module.training_loss(Environments(support=(x, x))).shape
        torch.Size([])
    """

    keys: ClassVar[tuple[Key, ...]] = (
        Key("train/loss", "ℝ", "what training minimises"),
        Key("train/weight/<name>", "ℝ", "w_τ of each named environment, or the largest"),
        Key("<stage>/loss", "ℝ", "the loss, mean over episodes"),
        Key("<stage>/accuracy", "[0, 1]", "the share of right classes, where targets are classes"),
    )
    """What it logs; ``{keys}`` in the docstring of a subclass becomes their table."""
    handles: tuple[Dealt, ...] = ("episodes",)
    """How data may be dealt to the processes of a run; a module that names ``"shares"`` sums over processes itself."""
    redraws = False
    """Whether a step computes a loss again that it has computed before, so that the loss must not be random."""

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion = F.cross_entropy,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: SchedulerConfig | LRSchedulerCallable | None = None,
        vectorize: Vectorize = "auto",
        weighting: WeightingName | Weighting = "mean",
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(network)
        check_vectorize(vectorize)
        checks.function(criterion=criterion)
        self.network = network
        self.criterion = criterion
        self.vectorize = vectorize
        self.weighting = weighting_of(weighting)
        if self.weighting is not None and self.couples_environments:
            raise ValueError(
                f"{type(self).__name__} couples the environments of a batch: they have no objectives of their own that "
                "weights could be put on. Leave weighting='mean', or take ERM, IRMv1, GradientPenalty or MAML."
            )
        if self.aggregates:
            self.couples_environments = True
        self.environment_weights: Tensor | None = None
        self._chunk_size: int | None = None
        self._tried: set[bool] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The command line builds arguments by their annotations, which a subclass need not repeat."""
        super().__init_subclass__(**kwargs)
        complete_hooks(cls)
        inherit_annotations(cls)
        with_keys(cls)

    # -- training -----------------------------------------------------------------------------------------------

    def training_loss(self, batch: EnvironmentBatch) -> Tensor:
        """The scalar that training minimises: the mean objective over all environments of the batch."""
        return self.training_terms(batch)[0]

    def training_terms(self, batch: EnvironmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar that training minimises, and the mean over environments of each of its terms (constants).

        With several chunks, each is differentiated on its own and memory is that of one.
        """
        batches = self.checked(batch)
        written_out = self.explicit(1) is not None
        differentiated_twice = self.second_order and not written_out
        with plain_kernels(self.second_order), cheap_layers(self.network) if differentiated_twice else nullcontext():
            return self.aggregated_terms(batches) if self.aggregates else self.batch_terms(batches)

    def batch_terms(self, batches: Sequence[Environments]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch that was checked; to override where environments are coupled."""
        total = sum(count_of(environments) for environments in batches)
        objective, written_out = self._objective(total), self.explicit(total)
        pieces = self.pieces(batches)
        if len(pieces) == 1 and written_out is None:
            return objective(pieces[0])
        inputs = self.trained_parameters()
        return accumulated(written_out or differentiated(objective, inputs), pieces, inputs)

    def aggregated_terms(self, batches: Sequence[Environments]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, one environment after the other; the gradient of the loss is ``aggregate``'s."""
        inputs = {name: value for name, value in self.named_parameters() if value.requires_grad}
        evaluation = self.explicit(1) or differentiated(self._objective(1), list(inputs.values()))
        loss, terms, self.environment_weights = aggregated_terms(
            self.aggregate, evaluation, self.pieces(batches), inputs, self.shares_examples
        )
        return loss, terms

    def _objective(self, total: int) -> Callable[[Environments], tuple[Tensor, dict[str, Tensor]]]:
        """The sum of the objectives of some environments over ``total``, and of their terms."""

        def objective(environments: Environments) -> tuple[Tensor, dict[str, Tensor]]:
            parameters = self.network_parameters()
            if type(self).environment_objectives is not EnvironmentModule.environment_objectives:
                return self.environment_objectives(parameters, environments).sum() / total, {}
            terms = self.environment_terms(parameters, environments)
            means = {name: value.detach().sum() / total for name, value in terms.items()}
            return self.combined(terms).sum() / total, means

        return objective

    def explicit(self, total: int) -> Evaluate[Environments] | None:
        """The objective over ``total`` environments with a gradient that is written out; None to leave it to autograd.

        Returns:
            A function of a piece of the batch, whose gradients are those by ``trained_parameters``.
        """
        return None

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """The batch cut into chunks of environments that are computed at once."""
        if self._chunk_size is None and self.aggregates:
            self._chunk_size = 1
        if self._chunk_size is None:
            parameters = self.network_parameters()
            self._chunk_size = chunk_size(
                self.vectorize,
                max(batches, key=count_of),
                self.network,
                lambda environments: self.separate(parameters, environments),
                lambda environments: self.environment_losses(parameters, environments),
                self.trained_parameters(),
            )
        pieces = [piece for environments in batches for piece in environments.chunks(self._chunk_size)]
        if self._chunk_size == 1 and has_convolutions(self.network):
            pieces = [channels_last(piece) for piece in pieces]
        return pieces

    def training_step(self, batch: EnvironmentBatch, batch_idx: int) -> Tensor:
        """Lightning's training step: logs ``train/loss`` and, where there are several, its terms."""
        batches = as_batches(batch)
        count = sum(count_of(environments) for environments in batches)
        overridden = type(self).training_loss is not EnvironmentModule.training_loss
        loss, terms = (self.training_loss(batches), {}) if overridden else self.training_terms(batches)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=count)
        for name, value in terms.items() if len(terms) > 1 else ():
            self.log(f"train/{name}", value, batch_size=count)
        if self.environment_weights is not None:
            for name, weight in named_weights(self.environment_weights, self._data).items():
                self.log(f"train/weight/{name}", weight, batch_size=count)
        return loss

    # -- checks -------------------------------------------------------------------------------------------------

    @always
    def setup(self, stage: str) -> None:
        """Refuses strategies, precisions and data that would give wrong gradients."""
        if stage == "fit" and self._trainer is not None:
            check_trainer(self, self._trainer, self._data)
        self._chunk_size, self._tried = None, set()

    def checked(self, batch: EnvironmentBatch) -> list[Environments]:
        """The batch as a list; the first one in training, and in evaluation, is tried out (``modules.trial``).

        Raises:
            TypeError: if it is no batch of environments, or the network gives no tensor.
            ValueError: see ``modules.trial.try_out`` and ``check_collation``.
        """
        batches = as_batches(batch)
        if self.training not in self._tried:
            with plain_kernels(second_order=True):
                self._try_out(batches)
            self._tried.add(self.training)
        return batches

    def _try_out(self, batches: Sequence[Environments]) -> None:
        try_batch(self, batches, self._data)

    @property
    def _data(self) -> Any:
        """The data module of this run, if it has one."""
        trainer: Any = self._trainer
        return None if trainer is None else trainer.datamodule


with_keys(EnvironmentModule)
