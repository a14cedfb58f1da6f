"""Modules whose environments are few and have names: evaluation environment by environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gp.environments import EnvironmentBatch, Environments, chunks_of, clone, examples_of
from lightning_gp.modules.accuracy import is_binary
from lightning_gp.modules.base import EnvironmentModule


class ExampleMean(Metric):
    """Mean over examples of a number that is known batch by batch; sums are float64 and added over processes."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, examples: int) -> None:
        """Adds the mean over some ``examples``."""
        self.total += mean.detach().sum().to(self.total.dtype) * examples
        self.count += examples

    def compute(self) -> Tensor:
        """The mean over all of them."""
        mean: Tensor = self.total / self.count
        return mean


class NamedEnvironmentModule(EnvironmentModule):
    """An ``EnvironmentModule`` for a fixed list of environments: position e of every batch is environment e.

    Validation and test log ``<stage>/loss`` and ``<stage>/accuracy`` averaged over environments, those of the worst
    environment as ``<stage>/worst_loss`` and ``<stage>/worst_accuracy``, and each environment's own accuracy (its loss,
    for regression) as ``<stage>/accuracy/<name>``. Names are the data module's ``environment_names[stage]``, or
    numbers.

    Accuracy counts the right classes for integer targets, and the right signs of the logit for the binary
    cross-entropy with logits. ``modules.irm`` says which of these metrics a checkpoint should watch.
    """

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Numbers of each environment, (E,), by name."""
        parameters = self.network_parameters()
        with torch.no_grad():
            examples = zip(*examples_of(environments, "query"), strict=True)
            values = [self.measure(parameters, x, y) for x, y in examples]
            return {name: torch.stack([value[name] for value in values]) for name in values[0]}

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of the numbers of each environment, (E,), averaged over all its examples."""
        return values

    def _evaluate_batch(self, batch: EnvironmentBatch) -> None:
        with torch.inference_mode(False):
            batches = [one for environments in self._checked_batches(batch) for one in chunks_of(environments, 1)]
            for position, environments in enumerate(batches):
                examples = examples_of(environments, "query")[1].shape[1]
                for name, value in self.evaluate(clone(environments)).items():
                    key = f"{name}:{position}"
                    self._example_mean(key, value.device).update(value, examples)

    def _example_mean(self, key: str, device: torch.device) -> ExampleMean:
        if key not in self.statistics:
            self.statistics[key] = ExampleMean().to(device)
        statistic = self.statistics[key]
        assert isinstance(statistic, ExampleMean)
        return statistic

    def _log_statistics(self, stage: str) -> None:
        columns: dict[str, list[Tensor]] = {}
        for key, statistic in self.statistics.items():  # positions of a name come in order
            columns.setdefault(key.partition(":")[0], []).append(statistic.compute().float())  # type: ignore[operator]
        values = self.summarize({name: torch.stack(column) for name, column in columns.items()})
        shown = "accuracy" if "accuracy" in values else "loss"
        for name, value in values.items():
            self.log(f"{stage}/{name}", value.mean(), prog_bar=name == shown)
        self.log(f"{stage}/worst_loss", values["loss"].max())
        if "accuracy" in values:
            self.log(f"{stage}/worst_accuracy", values["accuracy"].min())
        for environment, value in zip(self._names(stage, len(values[shown])), values[shown], strict=True):
            self.log(f"{stage}/{shown}/{environment}", value)

    def _names(self, stage: str, count: int) -> Sequence[str]:
        datamodule = getattr(self._trainer, "datamodule", None)
        names: Sequence[str] = getattr(datamodule, "environment_names", {}).get(stage, ())
        return names if len(names) == count else [str(position) for position in range(count)]

    def _checked_batches(self, batch: EnvironmentBatch) -> list[Environments]:
        first = not self._checked
        batches = super()._checked_batches(batch)
        if first and is_binary(self.criterion):
            check_binary_targets(batches)
        return batches


def check_binary_targets(batches: Sequence[Environments]) -> None:
    """Refuses targets other than 0 and 1.

    Raises:
        ValueError: naming an offending value.
    """
    for environments in batches:
        for _, y in filter(None, (environments.support, environments.query)):
            wrong = y[(y != 0) & (y != 1)]
            if wrong.numel():
                raise ValueError(
                    f"The binary cross-entropy needs targets 0 and 1, found {wrong[0].item():g}. Encode the two "
                    "classes as 0. and 1., or use the cross-entropy for more classes."
                )


def at_least_zero(**values: float) -> None:
    """Refuses negative and infinite numbers.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number of at least 0.")
