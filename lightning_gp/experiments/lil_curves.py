"""MAML, MAML + LIL, ANIL and BOIL on Omniglot: linearity of the inner loop and validation accuracy over training.

[L22] "Enforcing zero-Hessian in meta-learning", 2022 (later published as SHOT, NeurIPS 2023).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_gp._lightning import pl
from lightning_gp.callbacks.phase_amplitude_consistency import PhaseAmplitudeConsistency
from lightning_gp.checks import number, whole
from lightning_gp.datamodules import OmniglotDataModule
from lightning_gp.experiments.lil_curves_summary import summarize
from lightning_gp.modules.lil import LIL
from lightning_gp.modules.maml import MAML
from lightning_gp.modules.maml_variants import ANIL, BOIL
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.plots import require_matplotlib
from lightning_gp.runs.folders import check_settings, kept
from lightning_gp.runs.training import Progress, check_every, quiet_trainer
from lightning_gp.trainability.grid import check_seeds, parse_shard

Algorithm = Literal["maml", "lil", "anil", "boil"]
PLAIN: dict[str, type[MAML]] = {"maml": MAML, "anil": ANIL, "boil": BOIL}


@dataclass(frozen=True)
class Settings:
    """What all runs of one comparison share.

    Attributes:
        iterations: outer steps of each run.
        every: iterations between measurements.
        val_episodes: fixed validation episodes.
        test_episodes: fixed test episodes, for the accuracy after the last iteration.
        probe_environments: environments that linearity is measured on, the first of training.
        ways: classes per episode.
        shots: support images per class.
        environments: in a meta-batch.
        channels: of Conv4.
        inner_lr: α.
        inner_steps: S.
        outer_lr: of Adam.
        phase_weight: of LIL.
        amplitude_weight: of LIL.
    """

    iterations: int = 1500
    every: int = 50
    val_episodes: int = 100
    test_episodes: int = 400
    probe_environments: int = 16
    ways: int = 5
    shots: int = 1
    environments: int = 4
    channels: int = 64
    inner_lr: float = 0.5
    inner_steps: int = 3
    outer_lr: float = 0.001
    phase_weight: float = 0.1
    amplitude_weight: float = 0.01


SETTINGS = Settings()


def train(
    algorithm: Algorithm, seed: int, settings: Settings, root: str, cache_dir: str | None = None
) -> dict[str, Any]:
    """One run on one CPU.

    Args:
        algorithm: ``"maml"``, ``"lil"`` (MAML + LIL), ``"anil"`` or ``"boil"``.
        seed: of weights and episodes.
        settings: what all share.
        root: folder of the Omniglot data.
        cache_dir: see ``OmniglotDataModule``.

    Returns:
        What is kept of the run: one row per measurement, the test accuracy, seconds.
    """
    pl.seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.Adam, lr=settings.outer_lr)
    network = Conv4(settings.ways, settings.channels, downsample="stride")
    module: MAML
    if algorithm in PLAIN:
        module = PLAIN[algorithm](network, settings.inner_lr, settings.inner_steps, optimizer=optimizer)
    else:
        module = LIL(
            network,
            settings.inner_lr,
            settings.inner_steps,
            phase_weight=settings.phase_weight,
            amplitude_weight=settings.amplitude_weight,
            optimizer=optimizer,
        )
    data = OmniglotDataModule(
        root,
        ways=settings.ways,
        shots=settings.shots,
        environments_per_batch=settings.environments,
        iterations_per_epoch=settings.iterations,
        val_episodes=settings.val_episodes,
        test_episodes=settings.test_episodes,
        seed=seed,
        cache_dir=cache_dir,
    )
    probe = PhaseAmplitudeConsistency(
        prototype=True, every_n_steps=settings.every, probe_size=settings.probe_environments
    )
    curve = Progress(f"{algorithm}, seed {seed}", metrics=("val/accuracy", "val/loss"), probes=[probe])
    often = {"val_check_interval": settings.every, "check_val_every_n_epoch": None}
    trainer = quiet_trainer("cpu", max_steps=settings.iterations, callbacks=[probe, curve], **often)
    start, processor = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor
    (tested,) = trainer.test(module, data, verbose=False)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "rows": curve.rows,
        "test_accuracy": tested["test/accuracy"],
        "test_accuracy_ci95": tested["test/accuracy_ci95"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "torch": torch.__version__,
    }


def planned(algorithms: Sequence[Algorithm], seeds: Sequence[int], shard: str = "1/1") -> list[tuple[Algorithm, int]]:
    """The runs (algorithm, seed) of this process; ``"i/n"`` is every n-th of them, the i-th first.

    Every other seed takes the algorithms in reverse, so that two processes share slow and fast runs.

    Raises:
        ValueError: if the shard is not of that form.

    Example:
        >>> planned(["maml", "lil"], [0, 1], "1/2")
        [('maml', 0), ('lil', 1)]
    """
    runs = [
        (algorithm, seed)
        for index, seed in enumerate(seeds)
        for algorithm in (algorithms if index % 2 == 0 else list(reversed(algorithms)))
    ]
    index, shards = parse_shard(shard)
    return runs[index - 1 :: shards]


def lil_curves(
    root: str = "data",
    output: Path = Path("runs/lil_curves"),
    settings: Settings = SETTINGS,
    algorithms: Sequence[Algorithm] = ("maml", "lil", "anil", "boil"),
    seeds: Sequence[int] = (0, 1, 2),
    shard: str = "1/1",
    aggregate: bool = False,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """MAML, MAML + LIL, ANIL and BOIL on Omniglot: makes the runs that are not there yet, and draws all that are.

    5-way 1-shot, 15 queries, Conv4-64, inner rate 0.5, 3 inner steps, 4 environments per batch, Adam at 0.001 [L22,
    section 6 and appendix C]. Runs of one seed start from the same weights and see the same episodes. A run that has
    ended is kept in runs/ of the output folder. The picture shows PC and AC [L22, Fig. 2], the linearisation
    error, the noise term [L22, Eq. 5], the loss gradient's ratio, the prototype classifier [L22, appendix D] and the
    validation accuracy [L22, Fig. 4], as mean and standard deviation of whatever runs have ended.

    Args:
        root: folder of the Omniglot data.
        output: folder for lil_curves.png, .csv, .json and runs/.
        settings: of every run.
        algorithms: maml, lil, anil, boil.
        seeds: one run of each algorithm per seed; one number N stands for 0 … N − 1.
        shard: i/n for the i-th of n parts of the runs, for n processes side by side.
        aggregate: only draw the runs that have ended.
        cache_dir: of the decoded images; null for $LIGHTNING_GP_CACHE, or the root.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range, or the folder has runs with other settings.
        FileNotFoundError: if there are no data, or no run to draw.
    """
    if aggregate:
        return summarize(output)
    check_every(settings.iterations, settings.every)
    check_seeds(seeds)
    rates = {"inner_lr", "outer_lr", "phase_weight", "amplitude_weight"}
    number(minimum=0, **{name: value for name, value in asdict(settings).items() if name in rates})
    whole(1, **{name: value for name, value in asdict(settings).items() if name not in rates})
    require_matplotlib()
    paths = {run: output / "runs" / f"{run[0]}-seed{run[1]}.json" for run in planned(algorithms, seeds, shard)}
    missing = [run for run, path in paths.items() if not check_settings(path, asdict(settings))]
    for count, (algorithm, seed) in enumerate(missing, 1):
        print(f"Run {count} of {len(missing)}: {algorithm}, seed {seed}", flush=True)
        made = partial(train, algorithm, seed, settings, root, cache_dir)
        kept(paths[algorithm, seed], asdict(settings), made)
        summarize(output)
    return summarize(output)
