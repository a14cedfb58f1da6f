"""What validation, test and prediction do with the environments of a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_gp._lightning import LightningModule
from lightning_gp.environments import EnvironmentBatch, Environments
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.modules.accuracy import accuracy
from lightning_gp.modules.hooks import always
from lightning_gp.modules.statistics import EpisodeInterval, EpisodeMean
from lightning_gp.types import Criterion, Examples, Parameters


class Evaluation(LightningModule):
    """The evaluating half of ``EnvironmentModule``: means over episodes, with 95 % confidence intervals at test.

    Several loaders are told apart as Lightning does, by ``/dataloader_idx_<i>`` at the end of each key.
    """

    criterion: Criterion
    episode_values: dict[str, list[float]] | None = None
    """Where the values of each test episode are kept, by name; None to keep means alone."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.ModuleDict()

    # -- what the training half defines -------------------------------------------------------------------------

    @abstractmethod
    def predict(self, parameters: Parameters, x: Tensor) -> Tensor: ...  # noqa: D102

    @abstractmethod
    def loss_and_outputs(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...  # noqa: D102

    @abstractmethod
    def network_parameters(self) -> Parameters: ...  # noqa: D102

    @abstractmethod
    def checked(self, batch: EnvironmentBatch) -> list[Environments]: ...  # noqa: D102

    @abstractmethod
    def pieces(self, batches: Sequence[Environments]) -> list[Environments]: ...  # noqa: D102

    # -- extension points ---------------------------------------------------------------------------------------

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Scalars that describe one environment: ``loss``, and ``accuracy`` where targets are class labels."""
        loss, outputs = self.loss_and_outputs(parameters, x, y)
        return {"loss": loss, **accuracy(outputs, y, self.criterion)}

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Numbers of each environment, (E,), by name; logged as ``val/<name>`` and ``test/<name>``."""
        with torch.no_grad():
            x, y = environments.split("query")
            values: dict[str, Tensor] = over_environments(self.measure, {}, self.network_parameters(), x, y)
            return values

    def predictions(self, support: Examples, x: Tensor) -> Tensor:
        """The outputs on x in each environment, (E, Q, …), after what the module does with labelled examples.

        Algorithms with an inner loop adapt to ``support`` first (``eval_inner_steps`` steps); the others ignore it.

        Args:
            support: labelled examples of the tasks, x (E, K, *feature), y (E, K, *target); for a single new task, put
                an axis in front by ``x.unsqueeze(0)``.
            x: what to predict, (E, Q, *feature).

        Returns:
            (E, Q, …), detached.

        Example:
            >>> from lightning_gp import MAML
            >>> module = MAML(nn.Linear(1, 1), criterion=nn.functional.mse_loss)
            >>> x = torch.linspace(0, 1, 5).reshape(1, 5, 1)
            >>> module.predictions((x, 2 * x), torch.ones(1, 3, 1)).shape
            torch.Size([1, 3, 1])
        """
        with torch.inference_mode(False), torch.no_grad(), plain_kernels():
            outputs: Tensor = over_environments(self.predict, {}, self.network_parameters(), x.clone())
        return outputs

    # -- Lightning's steps --------------------------------------------------------------------------------------

    def validation_step(self, batch: EnvironmentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Lightning's validation step: logs ``val/…``."""
        self._evaluate_batch(batch, "val", dataloader_idx)

    def test_step(self, batch: EnvironmentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Lightning's test step: logs ``test/…`` and the half-widths ``test/…_ci95``."""
        self._evaluate_batch(batch, "test", dataloader_idx)

    def predict_step(self, batch: EnvironmentBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | list[Tensor]:
        """Lightning's prediction step: the outputs on the query inputs, (E, Q, …); a list for environments in a list.

        Without a query set, the outputs are those on the support inputs.
        """

        def of(environments: Environments) -> Tensor:
            pieces = self.pieces([environments])
            return torch.cat([self.predictions(piece.support, piece.split("query")[0]) for piece in pieces])

        with torch.inference_mode(False), torch.enable_grad(), plain_kernels():
            outputs = [of(environments.map(torch.clone)) for environments in self.checked(batch)]
        return outputs[0] if isinstance(batch, Environments) else outputs

    @always
    def on_validation_epoch_start(self) -> None:
        """Forgets the last evaluation."""
        self.statistics.clear()

    @always
    def on_test_epoch_start(self) -> None:
        """Forgets the last evaluation."""
        self.statistics.clear()

    def _evaluate_batch(self, batch: EnvironmentBatch, stage: str, loader: int) -> None:
        # `trainer.test` runs in inference mode and hands over inference tensors; gradients need a copy outside of it.
        with torch.inference_mode(False), torch.enable_grad(), plain_kernels():
            for environments in self.checked(batch):
                for piece in self.pieces([environments.map(torch.clone)]):
                    for name, values in self.evaluate(piece).items():
                        self._note(stage, name, values, loader)

    def _note(self, stage: str, name: str, values: Tensor, loader: int) -> None:
        if self.episode_values is not None and stage == "test":
            suffix = f"/dataloader_idx_{loader}" if loader else ""
            self.episode_values.setdefault(f"{name}{suffix}", []).extend(values.tolist())
        for suffix, kind in {"": EpisodeMean, "_ci95": EpisodeInterval}.items():
            key = f"{loader}/{name}{suffix}"
            if key not in self.statistics:
                self.statistics[key] = kind().to(values.device)
            statistic = self.statistics[key]
            assert isinstance(statistic, EpisodeMean)
            statistic.update(values)
            if suffix and stage != "test":
                continue
            # Lightning computes it at the end of the loader, from the sums of all processes.
            self.log(
                f"{stage}/{name}{suffix}",
                statistic,
                on_step=False,
                on_epoch=True,
                prog_bar=key in ("0/loss", "0/accuracy"),
                metric_attribute=f"statistics.{key}",
                batch_size=len(values),
            )
