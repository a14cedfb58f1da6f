"""``CosineSimilarity``: whether gradients point the same way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.episodes import EpisodeProbe
from lightning_gp.callbacks.losses import AnyLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.probe_batch import ProbeBatch
from lightning_gp.callbacks.shards import Parts, cosines, cosines_between, inner_products
from lightning_gp.contracts import Key
from lightning_gp.environments import Environments
from lightning_gp.functional.stacks import as_rows
from lightning_gp.plots import cosine_matrix, require_matplotlib

ONE_GRADIENT = (
    "CosineSimilarity(episodes=...) compares the gradients of the query and the support set of each episode in "
    "evaluation, but here an episode has a single set. Leave episodes=None, or give the module environment_losses and "
    "batches of Environments(support=(x, y), query=(x, y))."
)


class CosineSimilarity(EpisodeProbe):
    """The cosine between gradients at the unadapted parameters.

    - Environments with a query set: cos(∇L_τ^te(θ), ∇L_τ^tr(θ)), query against support, averaged over environments
      (S. Takagi et al., 2021 [T21], Fig. 2), and their inner product ∇L_τ^te(θ)ᵀ∇L_τ^tr(θ), by which MAML of a small
      rate α lowers its loss, to first order: L̃ ≈ mean_τ (L_τ^te − α ∇L_τ^teᵀ∇L_τ^tr) [T21, Eq. 7].
    - Environments without one, or a ``loss_fn`` of one loss per environment: between every two environments.
    - Any other module: the training probe batch against the first validation batches.

    {keys}

    A cosine with a gradient of length 0 is NaN.

    With ``episodes=N`` also of N episodes in ``trainer.validate`` and ``trainer.test``, for environments with a query
    set: see ``EpisodeProbe``.

    Cost: a forward and backward pass of the probe batch for each of the two gradients, in evaluation of each episode;
    between environments one pass, and memory for all their gradients.

    Args:
        matrix: draw the matrix of cosines once per epoch, where there is one (needs matplotlib).
        **kwargs: see ``EpisodeProbe`` and ``Probe``.

    Raises:
        ValueError: at the first measurement, if there is a single environment and no query set. With ``episodes``: in
            ``setup``, if the module has no environments; at the first episode, if that has no query set.
    """

    keys = (
        Key("gradients/cosine", "[−1, 1]", "the mean of these cosines"),
        Key("gradients/inner_product", "(−∞, ∞)", "the mean inner product; only with query sets"),
        Key("gradients/cosine_min", "[−1, 1]", "the smallest between two environments; only without query sets"),
        Key("gradients/cosine_matrix", "", "picture of all of them, with ``matrix=True``; only without query sets"),
    )

    def __init__(self, matrix: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if matrix:
            require_matplotlib()
        checks.flag(matrix=matrix)
        self.matrix = matrix

    def begin(self) -> None:
        """Also forgets the validation batch."""
        super().begin()
        self.validation = ProbeBatch()

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """It needs nothing but gradients."""
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also prepares for a validation batch."""
        super().setup(trainer, pl_module, stage)
        if self.evaluation_loss is not None and not self.evaluation_loss.by_environment:
            raise ValueError(ONE_GRADIENT)
        if stage == "fit":
            self.validation = ProbeBatch(self.probe_size, False, trainer.global_rank, trainer.world_size)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        """Copies the first validation batches, for modules without environments."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if self.loss is not None and not self.loss.by_environment and not dataloader_idx:
            self.validation.offer(batch, (0, batch_idx))

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """The gradients of both sets, where there are two."""
        super().check(loss, piece)
        if isinstance(piece, Environments) and piece.query is not None:
            loss.gradients(loss.parameters(), piece, "support")

    def measure(self, measurement: Measurement) -> Report:
        """Cosines on the probe batch."""
        if measurement.loss.by_environment and measurement.pieces[0].query is not None:
            pairs = zip(measurement.gradients("query"), measurement.gradients("support"), strict=True)
            found = [(cosines(*pair), inner_products(*pair)) for pair in pairs]
            angles, products = (torch.cat(each) for each in zip(*found, strict=True))
            return Report(
                {
                    "gradients/cosine": measurement.mean_over_environments(angles),
                    "gradients/inner_product": measurement.mean_over_environments(products),
                }
            )
        gradients = list(measurement.gradients())
        if measurement.loss.scalar:
            return self._against_validation(gradients[0], measurement)
        return self._between_environments(gradients, measurement)

    def measure_episode(self, measurement: Measurement) -> Mapping[str, float]:
        """Query against support."""
        if measurement.pieces[0].query is None:
            raise ValueError(ONE_GRADIENT)
        return super().measure_episode(measurement)

    def _between_environments(self, gradients: list[dict[str, Tensor]], measurement: Measurement) -> Report:
        rows = [torch.cat([as_rows(value) for value in stack.values()], dim=1) for stack in gradients]
        everyone = measurement.all_environments(torch.cat(rows))
        count = len(everyone)
        if count < 2:
            raise ValueError(
                "CosineSimilarity has a single environment and no query set, so there are no two gradients to compare. "
                "Give the batches at least two environments or a query set, and probe_size at least 2."
            )
        stack = {"all": everyone}
        matrix = cosines_between(Parts(stack) if measurement.spread else stack)
        above = matrix[torch.triu(torch.ones_like(matrix, dtype=torch.bool), diagonal=1)]
        report = Report({"gradients/cosine": float(above.mean()), "gradients/cosine_min": float(above.min())})
        if self.matrix:
            report.pictures["gradients/cosine_matrix"] = lambda: cosine_matrix(matrix.cpu())
        return report

    def _against_validation(self, training: dict[str, Tensor], measurement: Measurement) -> Report:
        (missing,) = measurement.ranks.totals(0.0 if self.validation.batches else 1.0)
        if missing:
            warnings.warn(
                "CosineSimilarity compares the gradients of a training and a validation batch, but has seen no "
                "validation batch yet, so it logs nothing. Give the Trainer a validation data loader.",
                stacklevel=2,
            )
            return Report()
        other = Measurement.of(measurement.loss, self.validation, measurement.ranks, measurement.again)
        (validation,) = other.gradients()
        return Report({"gradients/cosine": float(cosines(training, validation))})
