"""``ModuleMap``: where anybody's module trains, over its outer rate and any of its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_gp._lightning import Callback, LightningModule, Trainer
from lightning_gp.callbacks.learning_rate_bounds import LearningRateBounds
from lightning_gp.checks import number
from lightning_gp.trainability.describe import checksum, describe_data, plain, versions
from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.grid import check_rates
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.still import Still
from lightning_gp.trainability.storage import FORMAT, Cell, Header
from lightning_gp.tuning.module_trials import ConstantRate, trained

LATE = 0.75
"""The share of the iterations from which on losses count: one batch of a classifier says little."""
EDGE = "edge of stability at the initial weights"
MOMENTS = 20
"""Batches at the initial weights from which an adaptive optimizer has its second moments, as in ``diagnose``."""


class ModuleMap(TrainabilityMap):
    """The loss of any LightningModule over a hyperparameter and the outer rate: where does *this* model train?

    Each cell trains a module, built with the hyperparameter's value, by its own ``training_step`` and with its own
    optimizer in a Trainer, at a constant rate β (of several parameter groups that of the largest, others in
    proportion). Its loss is the mean of what ``training_step`` returns in the last quarter of the iterations. A cell
    stops when a loss is not finite or leaves ± ``divergence`` · |the first loss|. Weights and batches of a seed are the
    same in all cells, as far as torch's generator decides them. Files, executors, shards, ``refine`` and pictures are
    those of a ``TrainabilityMap``, whose α is the hyperparameter here.

    As in the tuner, schedulers rest, gradients are not clipped, and precision is full; the loss counts with automatic
    and manual optimization alike.

    Args:
        module: ``module(seed, value)`` builds the module; the seed is in torch's generator before the call.
        data: a DataModule, or what ``Trainer.fit`` takes as training data; or a function of the seed that makes it.
        name: of the hyperparameter, as the axis has it.
        values: of the hyperparameter, ascending, above 0: the axis is logarithmic.
        outer_lrs: β, ascending, above 0.
        iterations: optimizer steps T ≥ 1 of each cell, one batch each.
        seeds: of the runs.
        zero: also compute the hyperparameter 0, for the line that a map is compared with.
        divergence: bound of |loss|, relative to the first.
        device: where to compute.

    Raises:
        ValueError: if a grid is empty, does not ascend or has values ≤ 0, or a number is out of range; from ``run``, if
            the module has not exactly one optimizer with a rate above 0, or no finite first loss.
        TypeError: from ``run``, if ``module`` builds no LightningModule.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_gp._lightning import LightningModule
        >>> class Line(LightningModule):
        ...     def __init__(self, weight_decay):
        ...         super().__init__()
        ...         self.net, self.weight_decay = torch.nn.Linear(1, 1), weight_decay
        ...     def training_step(self, batch):
        ...         return (self.net(batch[0]) - 2 * batch[0]).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=self.weight_decay)
        >>> data = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=4)
        >>> found = ModuleMap(lambda seed, value: Line(value), data, "weight_decay", [0.01, 10.0], [0.1, 0.4], 50)
        >>> found.run(progress=False).diverged.tolist()
        [[0, 0], [0, 1]]
    """

    def __init__(
        self,
        module: Callable[[int, float], LightningModule],
        data: Any,
        name: str,
        values: Sequence[float],
        outer_lrs: Sequence[float],
        iterations: int = 500,
        seeds: Sequence[int] = (0,),
        zero: bool = False,
        divergence: float = 1e4,
        device: str | torch.device = "cpu",
    ) -> None:
        if isinstance(module, LightningModule):
            raise TypeError(
                f"module is a {type(module).__name__}; give a function of the seed and the value of {name} that builds "
                "it, such as lambda seed, value: MyModule(weight_decay=value)."
            )
        check_rates("values", values)
        number(above=1, divergence=divergence)
        nothing = cast(Callable[[int], Any], module)  # never called: this map builds modules by itself
        super().__init__(
            nothing, data, values, outer_lrs, iterations, seeds, "sgd", zero, divergence=divergence, device=device
        )
        self.module, self.name = module, name
        self._drawn: tuple[int, Any] | None = None

    def compute(self, cell: Cell) -> Outcome:
        """Trains one cell."""
        watch = self._trained(cell.seed, cell.inner_lr, cell.outer_lr, self.iterations + 1)
        first = next(iter(watch.losses.values()), math.nan)
        return Outcome(
            watch.mean(LATE * self.iterations),
            first if math.isfinite(first) else None,
            min(max(watch.seen - 1, 0), self.iterations),
        )

    def edge(self, value: float, seed: int | None = None) -> float:
        """The largest β that converges at the initial weights, by ``LearningRateBounds``; ∞ if nothing bounds it.

        Args:
            value: of the hyperparameter.
            seed: of the weights and batches; the first if None.

        Raises:
            ValueError: if the optimizer is not known, or the loss cannot be measured by itself, as with manual
                optimization.
            RuntimeError: if an operation in the loss has no double backward.
        """
        probe = LearningRateBounds(every_n_steps=MOMENTS)
        self._trained(self.seeds[0] if seed is None else seed, value, None, MOMENTS, Still(MOMENTS), probe)
        found = probe.values["learning_rates/outer_critical"]
        return found if found == found else math.inf

    def edges(self) -> tuple[str, tuple[float, ...]]:
        """``edge`` at every value of the map, with the first seed, as ``plot_map(lines=[…])`` takes it."""
        return EDGE, tuple(self.edge(value) for value in self.inner_lrs)

    def header(self) -> Header:
        """Settings, grid and versions, as the file has them; checks that training can start."""
        value = 0.0 if self.zero_inner_lr else self.inner_lrs[0]
        starts: dict[str, dict[str, str]] = {}
        for seed in self.seeds:
            module, first = self._build(seed, value), FirstBatch()
            watch = self._trained(seed, value, None, 1, first, module=module)
            loss = next(iter(watch.losses.values()), math.nan)
            if not math.isfinite(loss):
                raise ValueError(
                    f"The loss of {type(module).__name__} is {loss} on the first batch, at {self.name} = {value:g} and "
                    f"seed {seed}: there is nothing to train. Let training_step return a loss, and check the data."
                )
            starts[str(seed)] = {"weights": checksum(module.parameters()), "first_batch": first.checksum}
        options = {key: item for key, item in dict(module.hparams).items() if key != self.name.rpartition(".")[2]}
        groups = [
            {key: item for key, item in group.items() if key not in ("params", "lr", "initial_lr")}
            for group in watch.optimizer.param_groups
        ]
        return {
            "format": FORMAT,
            "settings": {
                "objective": {
                    "class": type(module).__name__,
                    "rate": self.name,
                    "label": self.name,
                    "curvature": {"kind": None, "steps": 1, "factor": 1.0},
                    "arguments": plain(options),
                    "network": plain(module),
                },
                "data": describe_data(self._data_of(self.seeds[-1])),
                "optimizer": {"class": type(watch.optimizer).__name__, "groups": plain(groups)},
                "iterations": self.iterations,
                "loss": f"mean from iteration {LATE:g} T on",
                "divergence": self.divergence,
                "device": self.device.type,
                "starts": starts,
            },
            "versions": versions(),
            "seeds": list(self.seeds),
            "zero_inner_lr": self.zero_inner_lr,
            "inner_lrs": list(self.inner_lrs),
            "outer_lrs": list(self.outer_lrs),
        }

    def _build(self, seed: int, value: float) -> LightningModule:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = self.module(seed, value)
        if not isinstance(module, LightningModule):
            raise TypeError(f"module({seed}, {value:g}) built a {type(module).__name__}, no LightningModule.")
        return module

    def _data_of(self, seed: int) -> Any:
        if not callable(self.data):
            return self.data
        if self._drawn is None or self._drawn[0] != seed:
            self._drawn = seed, self.data(seed)
        return self._drawn[1]

    def _trained(
        self,
        seed: int,
        value: float,
        rate: float | None,
        batches: int,
        *others: Callback,
        module: LightningModule | None = None,
    ) -> ConstantRate:
        built = self._build(seed, value) if module is None else module
        watch = ConstantRate(rate, batches, self.divergence)
        return trained(built, self._data_of(seed), self.device, seed, watch, *others)

    def __getstate__(self) -> dict[str, Any]:
        """Without the data that were made: each process makes its own."""
        return {**super().__getstate__(), "_drawn": None}


class FirstBatch(Callback):
    """Notes what batch training begins with.

    Attributes:
        checksum: of its tensors.
    """

    checksum = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Once."""
        self.checksum = self.checksum or checksum(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
