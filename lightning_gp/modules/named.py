"""Modules whose environments are few and have names: evaluation environment by environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gp.contracts import Dealt, Key, NamesEnvironments, dealt_by
from lightning_gp.environments import EnvironmentBatch, Environments
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.processes import mean_over_processes, processes
from lightning_gp.modules.accuracy import is_binary
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.hooks import always
from lightning_gp.modules.statistics import ExampleMean


class NamedEnvironmentModule(EnvironmentModule):
    """An ``EnvironmentModule`` for a fixed list of environments: position e of every batch is environment e.

    {keys}

    Names are the data module's ``environment_names[stage]``, or numbers.

    Accuracy counts the right classes for integer targets, and the right signs of the logit for the binary
    cross-entropy with logits. ``modules.irm`` says which of these metrics a checkpoint should watch.

    With any other data (fresh environments in every batch, a plain loader) a position means nothing: the means over
    episodes are logged, as by ``EnvironmentModule``.

    **Several devices.** Such data are dealt in shares: every process holds a share of *each* environment. A subclass
    whose objective sums over processes says so by ``handles`` and finds in ``mean_over_examples`` what it needs; here,
    whole environments (``"episodes"``) are all that is handled.
    """

    keys = (
        *EnvironmentModule.keys,
        Key("<stage>/worst_loss", "ℝ", "the loss of the worst environment"),
        Key("<stage>/worst_accuracy", "[0, 1]", "its accuracy"),
        Key("<stage>/objective", "ℝ", "the loss, plus the penalty at its full weight where there is one"),
        Key("<stage>/accuracy/<name>", "[0, 1]", "the accuracy of each environment"),
        Key("<stage>/loss/<name>", "ℝ", "its loss, for regression"),
    )
    dealt: Dealt | None = None
    """How the data are dealt to processes; None for what the data module declares, or else episodes."""

    @property
    def shares_examples(self) -> bool:
        """Whether other processes hold more examples of the same environments."""
        return processes() > 1 and (self.dealt or dealt_by(self._data)) == "shares" and "shares" in self.handles

    @property
    def by_name(self) -> bool:
        """Whether position e of every batch is environment e: the data module says so by naming them."""
        return isinstance(self._data, NamesEnvironments)

    def mean_over_examples(self, means: Tensor, targets: Tensor) -> Tensor:
        """Means over this process's examples of targets (E, K, ...), turned into means over those of all processes."""
        return mean_over_processes(means, targets.shape[1]) if self.shares_examples else means

    def variance_over_examples(self, values: Tensor, targets: Tensor) -> Tensor:
        """The variance (divisor K) of values (E, K, D) over the examples of targets, of all processes: (E, D)."""
        mean = self.mean_over_examples(values.mean(1), targets)
        return self.mean_over_examples((values - mean.unsqueeze(1)).square().mean(1), targets)

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """Chunks of environments; one by one where processes must cut alike, as their collectives have to match."""
        if self._chunk_size is None and self.shares_examples:
            self._chunk_size = 1
        return super().pieces(batches)

    @always
    def setup(self, stage: str) -> None:
        """Also refuses data that are dealt to processes in another way than the module was told."""
        super().setup(stage)
        if stage == "fit" and processes() > 1 and self.dealt not in (None, dealt_by(self._data)):
            raise ValueError(
                f"dealt={self.dealt!r}, but {type(self._data).__name__} deals {dealt_by(self._data)!r}: gradients and "
                "penalties would be wrong. Leave dealt=None, which goes by what the data module declares."
            )

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Numbers of each environment, (E,), by name."""
        parameters = self.network_parameters()
        with torch.no_grad():
            examples = zip(*environments.split("query"), strict=True)
            values = [self.measure(parameters, x, y) for x, y in examples]
            columns = {name: torch.stack([value[name] for value in values]) for name in values[0]}
            return columns if self.by_name else self.summarize(columns)

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of the numbers of each environment, (E,), averaged over all its examples; ``objective``, too."""
        return {**values, "objective": values["loss"]}

    def _evaluate_batch(self, batch: EnvironmentBatch, stage: str, loader: int) -> None:
        if not self.by_name:
            return super()._evaluate_batch(batch, stage, loader)
        with torch.inference_mode(False), plain_kernels():
            batches = [one for environments in self.checked(batch) for one in environments.chunks(1)]
            for position, environments in enumerate(batches):
                examples = environments.split("query")[1].shape[1]
                for name, value in self.evaluate(environments.map(torch.clone)).items():
                    key = f"{loader}:{name}:{position}"
                    if key not in self.statistics:
                        self.statistics[key] = ExampleMean().to(value.device)
                    statistic = self.statistics[key]
                    assert isinstance(statistic, ExampleMean)
                    statistic.update(value, examples)

    @always
    def on_validation_epoch_end(self) -> None:
        """Logs the numbers of every environment."""
        self._log_named("val")

    @always
    def on_test_epoch_end(self) -> None:
        """Logs the numbers of every environment."""
        self._log_named("test")

    def _log_named(self, stage: str) -> None:
        if not self.by_name:
            return
        loaders: dict[str, dict[str, list[Tensor]]] = {}
        for key, statistic in self.statistics.items():  # positions of a name come in order
            loader, name, _ = key.split(":")
            assert isinstance(statistic, ExampleMean)
            loaders.setdefault(loader, {}).setdefault(name, []).append(statistic.compute())
        for loader, columns in loaders.items():
            suffix = f"/dataloader_idx_{loader}" if len(loaders) > 1 else ""
            values = self.summarize({name: torch.stack(column) for name, column in columns.items()})
            shown = "accuracy" if "accuracy" in values else "loss"
            for name, value in values.items():
                self.log(f"{stage}/{name}{suffix}", value.mean().float(), prog_bar=name == shown)
            self.log(f"{stage}/worst_loss{suffix}", values["loss"].max().float())
            if "accuracy" in values:
                self.log(f"{stage}/worst_accuracy{suffix}", values["accuracy"].min().float())
            for environment, value in zip(self._names(stage, len(values[shown])), values[shown], strict=True):
                self.log(f"{stage}/{shown}/{environment}{suffix}", value.float())

    def _names(self, stage: str, count: int) -> Sequence[str]:
        names = self._data.environment_names.get(stage, ())
        return names if len(names) == count else [str(position) for position in range(count)]

    def _try_out(self, batches: Sequence[Environments]) -> None:
        super()._try_out(batches)
        if is_binary(self.criterion):
            check_binary_targets(batches)


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
