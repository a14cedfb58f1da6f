"""``EnvironmentModule``, what every algorithm of this package is and what users subclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp._lightning import LightningModule
from lightning_gp.environments import (
    EnvironmentBatch,
    Environments,
    as_batches,
    chunks_of,
    clone,
    count_of,
    examples_of,
)
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.precomputed import accumulated, differentiated
from lightning_gp.modules.accuracy import accuracy
from lightning_gp.modules.checks import check_batch, check_callables, check_network, check_trainer
from lightning_gp.modules.chunking import Vectorize, channels_last, check_vectorize, chunk_size, has_convolutions
from lightning_gp.modules.resuming import check_configuration, check_weights, finish_epoch
from lightning_gp.modules.statistics import EpisodeStatistics
from lightning_gp.types import Criterion, LRSchedulerCallable, OptimizerCallable, Parameters


class EnvironmentModule(LightningModule):
    """Minimises the mean over environments of an objective, mean_τ L̃_τ(θ).

    The extension points, in the order in which they are called; override any of them:

    1. ``predict(parameters, x)`` – the network with the given parameters on one environment's inputs.
    2. ``loss(parameters, x, y)`` – the scalar loss of one environment.
    3. ``environment_losses(parameters, environments, split)`` – (E,), the losses at the *unadapted* parameters; what
       callbacks differentiate.
    4. ``environment_objectives(parameters, environments)`` – (E,), what training minimises.
    5. ``measure(parameters, x, y)`` and ``evaluate(environments)`` – what validation and test report.
    6. ``configure_optimizers()`` – Lightning's own.

    Here the objective is the loss itself: empirical risk minimisation.

    Args:
        network: the network; its parameters are θ. Normalisation layers must not keep running statistics.
        criterion: maps predictions (K, ...) and targets (K, ...) to a scalar mean.
        optimizer: builds the (outer) optimizer from the parameters.
        lr_scheduler: builds a learning-rate scheduler from the optimizer, or None.
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

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion = F.cross_entropy,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        vectorize: Vectorize = "auto",
    ) -> None:
        super().__init__()
        check_network(network)
        check_vectorize(vectorize)
        check_callables(criterion=criterion, optimizer=optimizer, lr_scheduler=lr_scheduler or optimizer)
        self.network = network
        self.criterion = criterion
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.vectorize = vectorize
        self.statistics = nn.ModuleDict()
        self._chunk_size: int | None = None
        self._checked = False

    # -- the objective ------------------------------------------------------------------------------------------

    def predict(self, parameters: Parameters, x: Tensor) -> Tensor:
        """The network's output on x (K, *feature) with ``parameters`` in place of its own."""
        out: Tensor = torch.func.functional_call(self.network, parameters, (x,))
        return out

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of one environment, x (K, *feature), y (K, *target)."""
        return self.criterion(self.predict(parameters, x), y)

    def environment_losses(self, parameters: Parameters, environments: Environments, split: str = "query") -> Tensor:
        """L_τ(θ) at the unadapted parameters, (E,); without a query set the support set stands in for it."""
        x, y = examples_of(environments, split)
        losses: Tensor = over_environments(self.loss, {}, parameters, x, y)
        return losses

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """What training minimises in each environment, (E,)."""
        return self.environment_losses(parameters, environments)

    def network_parameters(self) -> Parameters:
        """θ: the network's parameters by name."""
        return dict(self.network.named_parameters())

    # -- training -----------------------------------------------------------------------------------------------

    def training_loss(self, batch: EnvironmentBatch) -> Tensor:
        """The scalar that training minimises: the mean objective over all environments of the batch.

        With several chunks, each is differentiated on its own and memory is that of one.
        """
        batches = as_batches(batch)
        pieces = self.pieces(batches)
        total = sum(count_of(environments) for environments in batches)

        def objective(environments: Environments) -> Tensor:
            return self.environment_objectives(self.network_parameters(), environments).sum() / total

        if len(pieces) == 1:
            return objective(pieces[0])
        inputs = self.trained_parameters()
        return accumulated(differentiated(objective, inputs), pieces, inputs)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that the outer optimizer changes: the network and, where learned, the inner rates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """The batch cut into chunks of environments that are computed at once."""
        if self._chunk_size is None:
            one = next(chunks_of(batches[0], 1))
            self._chunk_size = chunk_size(
                self.vectorize,
                max(count_of(environments) for environments in batches),
                self.network,
                lambda: self.environment_objectives(self.network_parameters(), one).sum(),
            )
        pieces = [piece for environments in batches for piece in chunks_of(environments, self._chunk_size)]
        if self._chunk_size == 1 and has_convolutions(self.network):
            pieces = [channels_last(piece) for piece in pieces]
        return pieces

    def training_step(self, batch: EnvironmentBatch, batch_idx: int) -> Tensor:
        """Lightning's training step: logs ``train/loss``."""
        batches = self._checked_batches(batch)
        loss = self.training_loss(batches)
        count = sum(count_of(environments) for environments in batches)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=count)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler given to ``__init__``."""
        optimizer = self.optimizer(self.trained_parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    # -- evaluation ---------------------------------------------------------------------------------------------

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Scalars that describe one environment: ``loss``, and ``accuracy`` where targets are class labels."""
        predictions = self.predict(parameters, x)
        overridden = type(self).loss is not EnvironmentModule.loss
        loss = self.loss(parameters, x, y) if overridden else self.criterion(predictions, y)
        return {"loss": loss, **accuracy(predictions, y, self.criterion)}

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Numbers of each environment, (E,), by name; logged as ``val/<name>`` and ``test/<name>``."""
        with torch.no_grad():
            x, y = examples_of(environments, "query")
            values: dict[str, Tensor] = over_environments(self.measure, {}, self.network_parameters(), x, y)
            return values

    def validation_step(self, batch: EnvironmentBatch, batch_idx: int) -> None:
        """Lightning's validation step: logs ``val/…``."""
        self._evaluate_batch(batch)

    def test_step(self, batch: EnvironmentBatch, batch_idx: int) -> None:
        """Lightning's test step: logs ``test/…``."""
        self._evaluate_batch(batch)

    def _evaluate_batch(self, batch: EnvironmentBatch) -> None:
        # `trainer.test` runs in inference mode and hands over inference tensors; gradients need a copy outside of it.
        with torch.inference_mode(False), torch.enable_grad():
            for environments in self._checked_batches(batch):
                for piece in self.pieces([clone(environments)]):
                    for name, values in self.evaluate(piece).items():
                        self._statistic(name, values.device).update(values)

    def _statistic(self, name: str, device: torch.device) -> EpisodeStatistics:
        if name not in self.statistics:
            self.statistics[name] = EpisodeStatistics().to(device)
        statistic = self.statistics[name]
        assert isinstance(statistic, EpisodeStatistics)
        return statistic

    def on_validation_epoch_start(self) -> None:
        """Forgets the last evaluation."""
        self.statistics.clear()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over episodes of every number that ``evaluate`` gave."""
        self._log_statistics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the means with their 95 % confidence intervals."""
        self._log_statistics("test")

    def _log_statistics(self, stage: str) -> None:
        for name in self.statistics:
            mean, half_width = self._statistic(name, self.device).compute()
            shown = name in ("loss", "accuracy")
            # Every process holds the global numbers already; sync_dist says so to Lightning.
            self.log(f"{stage}/{name}", mean.float(), prog_bar=shown, sync_dist=True)
            if stage == "test":
                self.log(f"{stage}/{name}_ci95", half_width.float(), sync_dist=True)

    # -- resuming -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which algorithm saved the checkpoint."""
        checkpoint["algorithm"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another network and, to continue training, of another configuration."""
        if self._trainer is None:
            return
        if self.strict_loading:
            check_weights(self.state_dict(), checkpoint["state_dict"])
        if self._trainer.state.fn == "fit":
            check_configuration(type(self).__name__, self.hparams, checkpoint)
            finish_epoch(checkpoint, self._trainer)

    # -- checks -------------------------------------------------------------------------------------------------

    @property
    def second_order(self) -> bool:
        """Whether training differentiates a gradient."""
        return False

    def setup(self, stage: str) -> None:
        """Refuses strategies and precisions that would give wrong gradients."""
        if stage == "fit":
            check_trainer(self, self.second_order)
        self._chunk_size, self._checked = None, False

    def _checked_batches(self, batch: EnvironmentBatch) -> list[Environments]:
        batches = as_batches(batch)
        if not self._checked:
            check_batch(self, batches[0])
            self._checked = True
        return batches
