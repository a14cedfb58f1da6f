"""``TrainabilityMap``: one objective trained at every point of a grid of rates.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective: Fig. 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.checks import whole
from lightning_gp.trainability.describe import describe_data, describe_objective, describe_seed, plain, versions
from lightning_gp.trainability.engine import CellTrainer, Outcome, OuterOptimizer
from lightning_gp.trainability.executors import computed, one_thread, processes
from lightning_gp.trainability.grid import check_rates, check_seeds
from lightning_gp.trainability.objective import Trainable, rate_of
from lightning_gp.trainability.progress import in_turn, recorded
from lightning_gp.trainability.refining import Criterion, between, check_refine
from lightning_gp.trainability.result import TrainabilityResult
from lightning_gp.trainability.storage import FORMAT, SHARD, Cell, Header, Journal, cells_of
from lightning_gp.trainability.stream import BatchStream, Data


class TrainabilityMap:
    """The loss after a fixed number of iterations over a grid of (α, β), and where training diverges [T21, Fig. 6].

    All cells of a seed start from the same weights and see the same batches. A cell stops when its loss is not finite
    or leaves ± ``divergence`` · |its first loss|; that is a result, and costs nothing further.

    Args:
        objective: a module of this package or a subclass (``CellTrainer`` says which rate α is), or, for several seeds,
            a function of the seed that builds it. The seed is put into torch's generator before the call.
        data: a DataModule, batches, or one batch for all iterations (``stream.Data``); or a function of the seed.
        inner_lrs: α, ascending, above 0.
        outer_lrs: β, ascending, above 0.
        iterations: outer steps T ≥ 1. The loss of a cell is that of θ_T on the batch after the T-th.
        seeds: of the runs that are averaged.
        optimizer: ``"sgd"``, ``"adam"``, or a function of the parameters and β.
        zero_inner_lr: also compute α = 0, for the line that a map is compared with.
        divergence: bound of |loss|, relative to the first.
        device: where to compute.

    Raises:
        ValueError: if a grid is empty, does not ascend or has rates ≤ 0, a number is out of range, or several seeds are
            asked of one module.
        TypeError: if the objective cannot be trained by a map, or a count is no whole number.

    Example:
        >>> from lightning_gp import MAML, Environments
        >>> x = torch.linspace(-1, 1, 5).reshape(1, 5, 1)
        >>> module = MAML(nn.Linear(1, 1), criterion=nn.functional.mse_loss)
        >>> batch = Environments((x, 2 * x), (x, 2 * x))
        >>> result = TrainabilityMap(module, batch, [0.1, 0.2], [0.1, 10.0], iterations=50).run(progress=False)
        >>> result.diverged.tolist()
        [[0, 1], [0, 1]]
    """

    def __init__(
        self,
        objective: Trainable | Callable[[int], Trainable],
        data: Data | Callable[[int], Data],
        inner_lrs: Sequence[float],
        outer_lrs: Sequence[float],
        iterations: int = 500,
        seeds: Sequence[int] = (0,),
        optimizer: OuterOptimizer = "sgd",
        zero_inner_lr: bool = True,
        divergence: float = 1e4,
        device: str | torch.device = "cpu",
    ) -> None:
        whole(1, iterations=iterations)
        self.seeds = check_seeds(seeds)
        if isinstance(objective, nn.Module):
            rate_of(objective)
            if len(seeds) > 1:
                raise ValueError(
                    f"seeds={list(seeds)}: a module has the initial weights of one seed. Pass a function of the seed "
                    "that builds the module, or one seed."
                )
        self.objective, self.data = objective, data
        self.inner_lrs = check_rates("inner_lrs", inner_lrs)
        self.outer_lrs = check_rates("outer_lrs", outer_lrs)
        self.iterations = iterations
        self.optimizer, self.zero_inner_lr, self.divergence = optimizer, zero_inner_lr, divergence
        self.device = torch.device(device)
        self._trainer: CellTrainer | None = None

    def run(
        self,
        path: str | Path | None = None,
        workers: int = 1,
        shard: tuple[int, int] = (1, 1),
        progress: bool = True,
        executor: Executor | None = None,
        refine: float | None = None,
        criterion: Criterion = "diverged",
    ) -> TrainabilityResult:
        """Computes the cells that ``path`` does not hold yet.

        With ``refine`` every border, of each α and seed, is then bisected between its two rates of the grid until these
        are closer than 1 + ``refine``. A grid of a few β and ``refine=0.05`` know borders to 5 % in log₂ as many
        trainings as a grid so fine would have: 2 + 8 instead of 140 for three decades. What a bisection finds is *a*
        border: where training fails and works again between two rates of the grid, one of several.

        Args:
            path: where finished cells are kept; None for nowhere. A run that was killed continues there.
            workers: processes of this machine, of one thread each. With more than one, what the map was made from must
                be picklable (cloudpickle is used where it is installed).
            shard: (i, n) to compute the i-th of n shares, from 1; ``storage.merge`` joins their files.
            progress: whether to show a progress bar.
            executor: of processes, in place of ``workers``: ``ProcessPoolExecutor``, loky's, Dask's
                ``client.get_executor()``, ``MPIPoolExecutor``, … It stays open. The file is written here.
            refine: relative width of borders, such as 0.05; None for those of the grid. The file keeps the cells of the
                bisection beside those of the grid, and may be refined further.
            criterion: what ends at a border that is refined: training ``"diverged"``, or also its loss got ``"worse"``.

        Returns:
            The losses; of a shard, those of its own cells.

        Raises:
            ValueError: if the file has other settings, the objective is not finite at the first step, a number is out
                of range, a shard is to be refined, or the executor has threads of this process.
            RuntimeError: if a process of the executor has other versions of torch, Python or this package.
        """
        index, shards = shard
        whole(1, workers=workers, shard=min(shard))
        if index > shards:
            raise ValueError(f"shard={index}/{shards}: the first number must be in 1 … {shards}.")
        check_refine(refine, shards)
        if workers > 1 and executor is not None:
            raise ValueError(f"workers={workers} with an executor, which has its own; give one of them.")
        with one_thread():
            header = self.header()
            if shards > 1:
                header[SHARD] = f"{index}/{shards}"
            cells = cells_of(header)[index - 1 :: shards]
            journal = Journal(path, header) if path is not None else None
            found = {} if journal is None else journal.cells
            missing = in_turn([cell for cell in cells if cell not in found])
            several = len(missing) if refine is None else len(cells) // len(self.outer_lrs)
            try:
                with processes(min(workers, several), executor) as pool:
                    outcomes = self._computed(missing, pool)
                    found = {**found, **recorded(outcomes, journal, len(cells), len(cells) - len(missing), progress)}
                    while refine is not None and (more := between(header, found, refine, criterion)):
                        outcomes = self._computed(more, pool)
                        found |= recorded(outcomes, journal, len(more), 0, progress, "Borders")
                if journal is not None:
                    journal.finish()
            finally:
                if journal is not None:
                    journal.close()
        return TrainabilityResult(header, found)

    def compute(self, cell: Cell) -> Outcome:
        """Trains one cell."""
        return self.trainer(cell.seed)(cell.inner_lr, cell.outer_lr, self.iterations)

    def trainer(self, seed: int) -> CellTrainer:
        """What trains the cells of ``seed``; that of the last seed asked for is kept."""
        if self._trainer is None or self._trainer.seed != seed:
            self._trainer = None  # frees its batches
            torch.manual_seed(seed)
            build = cast(Callable[[int], Trainable], self.objective)
            objective = cast(Trainable, build) if isinstance(build, nn.Module) else build(seed)
            data = self.data(seed) if callable(self.data) else self.data
            stream = BatchStream(data, self.device)
            self._trainer = CellTrainer(objective, stream, self.optimizer, self.divergence, seed)
            self._data = data
        return self._trainer

    def header(self) -> Header:
        """Settings, grid and versions, as the file has them; checks that training can start.

        Raises:
            ValueError: if the objective is not finite on the first batch, at the smallest α.
        """
        starts = {}
        for seed in reversed(self.seeds):
            trainer = self.trainer(seed)
            alpha = 0.0 if self.zero_inner_lr else self.inner_lrs[0]
            loss = trainer.first_loss(alpha)
            if not math.isfinite(loss):
                raise ValueError(
                    f"The objective is {loss} before the first step, at α = {alpha:g} and seed {seed}: there is "
                    "nothing to train. Check the data for NaN, the network's initial weights, and the loss."
                )
            starts[str(seed)] = describe_seed(trainer.initial, next(trainer.stream.first(1)))
        return {
            "format": FORMAT,
            "settings": {
                "objective": describe_objective(trainer.objective),
                "data": describe_data(self._data),
                "optimizer": plain(self.optimizer),
                "iterations": self.iterations,
                "divergence": self.divergence,
                "device": self.device.type,
                "starts": dict(sorted(starts.items())),
            },
            "versions": versions(),
            "seeds": list(self.seeds),
            "zero_inner_lr": self.zero_inner_lr,
            "inner_lrs": list(self.inner_lrs),
            "outer_lrs": list(self.outer_lrs),
        }

    def _computed(self, cells: list[Cell], pool: Executor | None) -> Iterator[tuple[Cell, Outcome]]:
        if pool is not None:
            yield from computed(self.compute, cells, pool)
        else:
            keep_freed_memory()
            for cell in cells:
                yield cell, self.compute(cell)

    def __getstate__(self) -> dict[str, Any]:
        """Without the caches: each process draws its own batches."""
        return {**self.__dict__, "_trainer": None, "_data": None}
