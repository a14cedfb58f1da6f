"""Modules whose environments are few and have names: evaluation environment by environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gp.environments import EnvironmentBatch, Environments, chunks_of, clone, examples_of
from lightning_gp.functional.penalties import mean_over_processes, processes
from lightning_gp.modules.accuracy import is_binary
from lightning_gp.modules.base import EnvironmentModule

DeviceSplit: TypeAlias = Literal["examples", "environments"]


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

    With an episodic data module (fresh environments in every batch) a position means nothing: the means over episodes
    are logged, as by ``EnvironmentModule``.

    **Several devices.** ``devices_share`` says what a process holds a part of: ``"examples"``, a share of *each*
    environment, the same environments in the same order, as this package's named environments are dealt out; or
    ``"environments"``, whole environments of its own, as many as any other.
    """

    devices_share: DeviceSplit = "examples"

    @property
    def shares_examples(self) -> bool:
        """Whether other processes hold more examples of the same environments."""
        return self.devices_share == "examples" and processes() > 1

    @property
    def by_name(self) -> bool:
        """Whether position e of every batch is environment e; not so for episodes."""
        return not is_episodic(getattr(self._trainer, "datamodule", None))

    def mean_over_examples(self, means: Tensor, targets: Tensor) -> Tensor:
        """Means over this process's examples of targets (E, K, ...), turned into means over those of all processes."""
        return mean_over_processes(means, targets.shape[1]) if self.shares_examples else means

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """Chunks of environments; one by one where processes must cut alike, as their collectives have to match."""
        if self._chunk_size is None and self.shares_examples:
            self._chunk_size = 1
        return super().pieces(batches)

    def setup(self, stage: str) -> None:
        """Also refuses data that are not dealt out to devices as ``devices_share`` says."""
        super().setup(stage)
        if stage == "fit" and processes() > 1:
            check_devices(self, getattr(self._trainer, "datamodule", None))

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Numbers of each environment, (E,), by name."""
        parameters = self.network_parameters()
        with torch.no_grad():
            examples = zip(*examples_of(environments, "query"), strict=True)
            values = [self.measure(parameters, x, y) for x, y in examples]
            columns = {name: torch.stack([value[name] for value in values]) for name in values[0]}
            return columns if self.by_name else self.summarize(columns)

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of the numbers of each environment, (E,), averaged over all its examples."""
        return values

    def _evaluate_batch(self, batch: EnvironmentBatch) -> None:
        if not self.by_name:
            return super()._evaluate_batch(batch)
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
        if not self.by_name:
            return super()._log_statistics(stage)
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


def is_episodic(datamodule: Any) -> bool:
    """Whether a data module draws whole environments for each process, fresh ones in every batch."""
    return hasattr(datamodule, "environments_per_batch")


def check_devices_share(value: str) -> None:
    """Refuses anything but the two choices.

    Raises:
        ValueError: naming the value.
    """
    if value not in ("examples", "environments"):
        raise ValueError(f"devices_share={value!r} is unknown; use 'examples' or 'environments'.")


def check_devices(module: NamedEnvironmentModule, datamodule: Any) -> None:
    """Refuses data of this package that are dealt out to devices in another way than the module believes.

    Raises:
        ValueError: naming both; gradients and penalties would be wrong without notice.
    """
    names = f"devices_share={module.devices_share!r}, but {type(datamodule).__name__} gives each device"
    if module.shares_examples and is_episodic(datamodule):
        raise ValueError(f"{names} whole environments of its own: set devices_share='environments'.")
    if module.devices_share == "environments" and hasattr(datamodule, "environment_names"):
        raise ValueError(f"{names} a share of every environment: set devices_share='examples'.")


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
        if isinstance(value, str) or value is None or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number of at least 0.")
