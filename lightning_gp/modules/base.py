"""``EnvironmentModule``, what every algorithm of this package is and what users subclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import checks
from lightning_gp.contracts import Dealt, Key, with_keys
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches, count_of
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.batch_norm import CheapBatchNorm, has_batch_norm
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.precomputed import Evaluation as Evaluate
from lightning_gp.functional.precomputed import accumulated, differentiated
from lightning_gp.modules.annotations import inherit_annotations
from lightning_gp.modules.checks import check_network, check_trainer
from lightning_gp.modules.chunking import Vectorize, channels_last, check_vectorize, chunk_size, has_convolutions
from lightning_gp.modules.hooks import always, complete_hooks
from lightning_gp.modules.outputs import check_shapes, tensor_of
from lightning_gp.modules.resumable import Resumable
from lightning_gp.modules.trial import try_batch
from lightning_gp.types import (
    Criterion,
    Examples,
    LRSchedulerCallable,
    OptimizerCallable,
    Parameters,
    SchedulerConfig,
    Split,
)


class EnvironmentModule(Resumable):
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
        Key("<stage>/loss", "ℝ", "the loss, mean over episodes"),
        Key("<stage>/accuracy", "[0, 1]", "the share of right classes, where targets are classes"),
    )
    """What it logs; ``{keys}`` in the docstring of a subclass becomes their table."""
    couples_environments = False
    """Whether the objective is no mean over environments, so that it cannot be put together from parts of a batch."""
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
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(network)
        check_vectorize(vectorize)
        checks.function(criterion=criterion)
        self.network = network
        self.criterion = criterion
        self.vectorize = vectorize
        self._chunk_size: int | None = None
        self._tried: set[bool] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The command line builds arguments by their annotations, which a subclass need not repeat."""
        super().__init_subclass__(**kwargs)
        complete_hooks(cls)
        inherit_annotations(cls)
        with_keys(cls)

    # -- the objective ------------------------------------------------------------------------------------------

    def predict(self, parameters: Parameters, x: Tensor) -> Tensor:
        """The network with ``parameters`` on the inputs of one environment, (K, *feature) -> (K, ...)."""
        return tensor_of(torch.func.functional_call(self.network, parameters, (x,)), self.network)

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of one environment, x (K, *feature), y (K, *target)."""
        return self.risk(self.predict(parameters, x), y)

    def risk(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The criterion of one environment's outputs and targets, whose shapes must fit."""
        check_shapes(outputs, y, self.criterion)
        return self.criterion(outputs, y)

    def loss_and_outputs(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and outputs of one environment, by one forward pass unless ``loss`` is overridden."""
        outputs = self.predict(parameters, x)
        return self.loss(parameters, x, y) if self.has_own_loss else self.risk(outputs, y), outputs

    @property
    def has_own_loss(self) -> bool:
        """Whether a subclass defines ``loss`` itself, so that it need not be the criterion of the outputs."""
        return type(self).loss is not EnvironmentModule.loss

    def trained_examples(self, environments: Environments) -> Examples:
        """The examples on which the unadapted risk is trained, and on which callbacks measure it: the query set.

        Where there is none, those of the support set. So an algorithm without an inner loop trains on what MAML with
        rate 0 would.
        """
        return environments.split("query")

    def environment_losses(self, parameters: Parameters, environments: Environments, split: Split = "query") -> Tensor:
        """L_τ(θ) at the unadapted parameters, (E,); without a query set the support set stands in for it."""
        x, y = self.trained_examples(environments) if split == "query" else environments.split(split)
        return self.unadapted(self.loss, parameters, x, y)

    def unadapted(self, function: Callable[..., Tensor], parameters: Parameters, *tensors: Tensor) -> Tensor:
        """``function(parameters, *tensors)`` in each environment, tensors (E, ...), in chunks as large as training's.

        Its graph is that of all environments: for objectives that couple them, which are not cut into ``pieces``.
        """
        parts = zip(*(each.split(self._chunk_size or len(each)) for each in tensors), strict=True)
        values: list[Tensor] = [over_environments(function, {}, parameters, *part) for part in parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """The terms of what training minimises in each environment, (E,) each, by name."""
        return {"loss": self.environment_losses(parameters, environments)}

    def term_weights(self) -> Mapping[str, float]:
        """The weight of each term in this step; 1 for those that are not named."""
        return {}

    def combined(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ_i w_i · term_i, (E,)."""
        weights = self.term_weights()
        total: Tensor | None = None
        for name, value in terms.items():
            weight = weights.get(name, 1.0)
            own = value if weight == 1 else weight * value
            total = own if total is None else total + own
        assert total is not None, f"{type(self).__name__}.environment_terms() gave no term"
        return total

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """What training minimises in each environment, (E,)."""
        return self.combined(self.environment_terms(parameters, environments))

    def network_parameters(self) -> Parameters:
        """θ: the network's parameters by name."""
        return dict(self.network.named_parameters())

    # -- training -----------------------------------------------------------------------------------------------

    def training_loss(self, batch: EnvironmentBatch) -> Tensor:
        """The scalar that training minimises: the mean objective over all environments of the batch."""
        return self.training_terms(batch)[0]

    def training_terms(self, batch: EnvironmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar that training minimises, and the mean over environments of each of its terms (constants).

        With several chunks, each is differentiated on its own and memory is that of one.
        """
        batches = self.checked(batch)
        total = sum(count_of(environments) for environments in batches)

        def objective(environments: Environments) -> tuple[Tensor, dict[str, Tensor]]:
            parameters = self.network_parameters()
            if type(self).environment_objectives is not EnvironmentModule.environment_objectives:
                return self.environment_objectives(parameters, environments).sum() / total, {}
            terms = self.environment_terms(parameters, environments)
            means = {name: value.detach().sum() / total for name, value in terms.items()}
            return self.combined(terms).sum() / total, means

        inputs = self.trained_parameters()
        written_out = self.explicit(total)
        differentiated_twice = self.second_order and written_out is None and has_batch_norm(self.network)
        with plain_kernels(self.second_order), CheapBatchNorm() if differentiated_twice else nullcontext():
            pieces = self.pieces(batches)
            if len(pieces) == 1 and written_out is None:
                return objective(pieces[0])
            return accumulated(written_out or differentiated(objective, inputs), pieces, inputs)

    def explicit(self, total: int) -> Evaluate[Environments] | None:
        """The objective over ``total`` environments with a gradient that is written out; None to leave it to autograd.

        Returns:
            A function of a piece of the batch, whose gradients are those by ``trained_parameters``.
        """
        return None

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that the outer optimizer changes: the network and, where learned, the inner rates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """The batch cut into chunks of environments that are computed at once."""
        if self._chunk_size is None:
            parameters = self.network_parameters()
            tried = self.environment_losses if self.couples_environments else self.environment_objectives
            self._chunk_size = chunk_size(
                self.vectorize,
                max(batches, key=count_of),
                self.network,
                lambda environments: tried(parameters, environments),
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
        return loss

    # -- checks -------------------------------------------------------------------------------------------------

    @property
    def second_order(self) -> bool:
        """Whether training differentiates a gradient."""
        return False

    @property
    def shares_examples(self) -> bool:
        """Whether other processes hold more examples of the same environments."""
        return False

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
