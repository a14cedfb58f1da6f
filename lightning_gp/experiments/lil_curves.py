"""MAML against MAML + LIL on Omniglot: consistencies of the inner loop and validation accuracy over training.

    lightning-gp reproduce lil-curves --root data
    lightning-gp reproduce lil-curves --root data --shard 1/2    # and 2/2 in a second process
    lightning-gp reproduce lil-curves --aggregate

5-way 1-shot, 15 queries, Conv4-64, inner rate 0.5, 3 inner steps, 4 environments per batch, Adam at 0.001 [L22, section
6 and appendix C]. Runs of one seed start from the same weights and see the same episodes. A run that has ended is kept
in ``runs/`` of the output folder and not repeated, so a command that was stopped goes on when it is given again. The
picture shows PC and AC [L22, Fig. 2] and the validation accuracy [L22, Fig. 4], as mean and standard deviation of
whatever runs have ended.

[L22] "Enforcing zero-Hessian in meta-learning", 2022 (later published as SHOT, NeurIPS 2023).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_gp._lightning import Callback, pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.callbacks.phase_amplitude_consistency import PhaseAmplitudeConsistency
from lightning_gp.datamodules.base import at_least
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.experiments.curves import Row, check_every
from lightning_gp.experiments.lil_curves_summary import aggregate
from lightning_gp.files import replacing
from lightning_gp.modules.lil import LIL
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.plots import require_matplotlib
from lightning_gp.trainability.grid import parse_shard

ALGORITHMS = ("maml", "lil")


@dataclass(frozen=True)
class Settings:
    """What all runs of one comparison share.

    Attributes:
        iterations: outer steps of each run.
        every: iterations between measurements.
        val_episodes: fixed validation episodes.
        test_episodes: fixed test episodes, for the accuracy after the last iteration.
        probe_environments: environments that PC and AC are measured on, the first of training.
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


def train(algorithm: str, seed: int, settings: Settings, root: str, cache_dir: str | None = None) -> dict[str, Any]:
    """One run on one CPU thread.

    Args:
        algorithm: ``"maml"`` or ``"lil"``.
        seed: of weights and episodes.
        settings: what both share.
        root: folder of the Omniglot data.
        cache_dir: see ``OmniglotDataModule``.

    Returns:
        What is kept of the run: settings, one row per measurement, the test accuracy, seconds.
    """
    pl.seed_everything(seed, verbose=False)
    network = Conv4(settings.ways, settings.channels, downsample="stride")
    module: MAML
    if algorithm == "maml":
        module = MAML(network, settings.inner_lr, settings.inner_steps, optimizer=_adam(settings.outer_lr))
    else:
        module = LIL(
            network,
            settings.inner_lr,
            settings.inner_steps,
            phase_weight=settings.phase_weight,
            amplitude_weight=settings.amplitude_weight,
            optimizer=_adam(settings.outer_lr),
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
    probe = PhaseAmplitudeConsistency(every_n_steps=settings.every, probe_size=settings.probe_environments)
    curve = _Curve(probe, f"{algorithm}, seed {seed}")
    trainer: Any = pl.Trainer(
        max_steps=settings.iterations,
        val_check_interval=settings.every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[probe, curve],
    )
    start, processor = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor
    (tested,) = trainer.test(module, data, verbose=False)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "settings": asdict(settings),
        "rows": curve.rows,
        "test_accuracy": tested["test/accuracy"],
        "test_accuracy_ci95": tested["test/accuracy_ci95"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "torch": torch.__version__,
    }


def _adam(lr: float) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


class _Curve(Callback):
    """One row per validation: its numbers, and what the probe has just measured."""

    def __init__(self, probe: PhaseAmplitudeConsistency, note: str) -> None:
        self.probe, self.note = probe, note
        self.rows: list[Row] = []
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = {key: float(trainer.callback_metrics[key]) for key in ("val/accuracy", "val/loss")}
        row = {"iteration": trainer.global_step, **metrics, **self.probe.values}
        self.rows.append(row)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "iteration")
        seconds = time.perf_counter() - self._start
        left = seconds * (trainer.max_steps / trainer.global_step - 1)
        print(
            f"{self.note}: iteration {trainer.global_step}/{trainer.max_steps}, {shown}, {seconds:.0f} s, "
            f"{left:.0f} s to go",
            flush=True,
        )


def planned(algorithms: Sequence[str], seeds: Sequence[int], shard: str | None = None) -> list[tuple[str, int]]:
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
    index, shards = (1, 1) if shard is None else parse_shard(shard)
    return runs[index - 1 :: shards]


def lil_curves(
    root: str = "data",
    output: str | Path = "runs/lil_curves",
    settings: Settings | None = None,
    algorithms: Sequence[str] = ALGORITHMS,
    seeds: Sequence[int] = (0, 1, 2),
    shard: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """Makes the runs that are not there yet, and draws all that are.

    Args:
        root: folder of the Omniglot data.
        output: folder for ``lil_curves.png``, ``.csv``, ``.json`` and ``runs/``.
        settings: of every run.
        algorithms: of ``ALGORITHMS``.
        seeds: one run of each algorithm per seed.
        shard: ``"i/n"``: this process's part of the runs.
        cache_dir: see ``OmniglotDataModule``.

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if an argument is out of range, or the folder has runs with other settings.
        FileNotFoundError: if there are no data.
    """
    settings = settings or Settings()
    check_every(settings.iterations, settings.every)
    at_least(1, inner_steps=settings.inner_steps)
    require_matplotlib()
    keep_freed_memory()
    runs, folder = planned(algorithms, seeds, shard), Path(output)
    paths = {run: folder / "runs" / f"{run[0]}-seed{run[1]}.json" for run in runs}
    missing = [run for run in runs if not _finished(paths[run], settings)]
    for number, (algorithm, seed) in enumerate(missing, 1):
        print(f"Run {number} of {len(missing)}: {algorithm}, seed {seed}", flush=True)
        result = train(algorithm, seed, settings, root, cache_dir)
        with replacing(paths[algorithm, seed]) as path:
            path.write_text(json.dumps(result) + "\n")
        aggregate(folder)
    return aggregate(folder)


def _finished(path: Path, settings: Settings) -> bool:
    if not path.is_file():
        return False
    kept = json.loads(path.read_text())["settings"]
    differing = {name: (kept.get(name), value) for name, value in asdict(settings).items() if kept.get(name) != value}
    if differing:
        listed = ", ".join(f"{name} {was!r} (now {now!r})" for name, (was, now) in differing.items())
        raise ValueError(f"{path} is a run with other settings: {listed}. Choose another output folder, or remove it.")
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser("lightning-gp reproduce lil-curves", description="MAML against MAML + LIL.")
    parser.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    parser.add_argument("--output", default="runs/lil_curves", help="folder of the results (default: %(default)s)")
    parser.add_argument("--cache-dir", help="of the decoded images (default: $LIGHTNING_GP_CACHE, or the root)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--shard", help="i/n: only the i-th of n parts of the runs, for n processes side by side")
    parser.add_argument("--aggregate", action="store_true", help="only draw the runs that have ended")
    for name, value in asdict(defaults).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help="(default: %(default)s)"
        )
    options = vars(parser.parse_args(arguments))
    settings = Settings(**{name: options.pop(name) for name in asdict(defaults)})
    if options.pop("aggregate"):
        aggregate(Path(options["output"]))
        return
    torch.set_num_threads(1)  # a step is too small to gain from more; use shards instead
    lil_curves(settings=settings, **options)


if __name__ == "__main__":
    main()
