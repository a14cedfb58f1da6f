"""``lightning-gp compare``: several trainings over the same seeds and test episodes, a table and a picture.

lightning-gp compare --config maml.yaml anil.yaml --seeds 3
lightning-gp compare --config maml.yaml --changes MAML: ANIL:model=ANIL "MAML + LIL: model=LIL" --seeds 3
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_gp._lightning import LightningDataModule, LightningModule
from lightning_gp.checks import whole
from lightning_gp.commands.compared_run import PROG, Run, placed, quiet_words, train_and_test, write_config
from lightning_gp.commands.training import lightning_cli
from lightning_gp.comparison.outcome import Result, read_result
from lightning_gp.comparison.table import Comparison
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.plots import require_matplotlib
from lightning_gp.runs.command import command
from lightning_gp.runs.domains import check_fits
from lightning_gp.runs.ending import shown, with_interval
from lightning_gp.trainability.executors import computed, own_processes
from lightning_gp.trainability.grid import check_seeds


def main(args: Sequence[str]) -> None:
    """The command line; what it does not know goes to every config, as in ``--trainer.max_epochs=1``."""
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    command(compare, PROG, args, rest="words", executor=None)


def compare(
    config: Sequence[Path],
    changes: Sequence[str] = (),
    words: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    metric: str | None = None,
    baseline: str | None = None,
    workers: int = 1,
    output: Path = Path("runs/compare"),
    executor: Executor | None = None,
) -> Comparison:
    """Trains several configs, or one with changes, once per seed, and compares them on the same test episodes.

    A run has the weights and the episodes of its seed and a folder of its own; finished ones are kept, and one that was
    killed goes on from its last epoch when the command is given again. Tested are the weights that the config's
    ModelCheckpoint found best, or else the last ones. The table has means and differences with 95 % intervals.

    Args:
        config: as for `lightning-gp fit`: one to compare changes of, or several.
        changes: of one config, as in "NAME: OPTION=VALUE OPTION=VALUE", options of `fit`; "NAME:" is the config itself.
        words: what else the command line of `fit` has; it holds for all.
        seeds: one training each; one number N stands for 0 … N − 1.
        metric: of the test; by default accuracy, or else loss.
        baseline: the name that differences are taken to; by default the first.
        workers: processes of one thread each.
        output: folder of the runs, the tables and the picture.
        executor: of ``concurrent.futures``, in place of ``workers``; its processes share the folder's disk.

    Returns:
        The comparison, which has been written to ``output``.

    Raises:
        ValueError: if there is no config, names are not distinct, a config does not fit its data, or ``output`` holds
            runs of other settings.
        FileNotFoundError: if a file is missing.
    """
    check_seeds(seeds)
    whole(1, workers=workers)
    require_matplotlib()
    if not config:
        raise ValueError("compare needs a config at least: --config FILE.yaml, or config=[...].")
    names = named(config, changes)
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline={baseline!r} is none of {', '.join(names)}.")
    runs = prepared(names, words, seeds, Path(output).absolute())
    waiting = [run for run in runs if read_result(Path(run.folder)) is None]
    print(f"{len(waiting)} of {len(runs)} trainings to do: {', '.join(names)}; seeds {', '.join(map(str, seeds))}.")
    own = own_processes(min(workers, len(waiting))) if executor is None and workers > 1 and waiting else None
    try:
        chosen = executor or own
        done = _one_by_one(waiting) if chosen is None else computed(train_and_test, waiting, chosen)
        for number, (run, _) in enumerate(done, 1):
            print(f"[{number}/{len(waiting)}] {run.name}, seed {run.seed}: {_told(run, metric)}", flush=True)
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)
    found: dict[str, dict[int, Result]] = {name: {} for name in names}
    for run in runs:
        result = read_result(Path(run.folder))
        assert result is not None
        found[run.name][run.seed] = result
    comparison = Comparison(found, metric, baseline)
    files = comparison.write(Path(output))
    print(f"\n{comparison}\n\nTables:  {', '.join(shown(path) for path in files if path.stem == 'table')}")
    print(f"Picture: {', '.join(shown(path) for path in files if path.suffix in ('.png', '.pdf'))}", flush=True)
    return comparison


def _one_by_one(runs: Sequence[Run]) -> Iterator[tuple[Run, None]]:
    for run in runs:
        print(f"{run.name}, seed {run.seed}: training in {shown(run.folder)}", flush=True)
        train_and_test(run)
        yield run, None


def named(config: Sequence[str | Path], changes: Sequence[str]) -> dict[str, list[str]]:
    """The words of ``fit`` of each name.

    Raises:
        ValueError: if two have one name or folder, or a change is not written as it should be.

    Example:
        >>> named(["maml.yaml"], ["MAML:", "two steps: model.inner_steps=2"])["two steps"]
        ['--config=maml.yaml', '--model.inner_steps=2']
    """
    if changes and len(config) > 1:
        raise ValueError(f"changes are of one config, found {len(config)}; give one, or several and no changes.")
    if changes:
        pairs = [change_of(change) for change in changes]
        found = [(name, [f"--config={config[0]}", *words]) for name, words in pairs]
    else:
        found = [(Path(each).stem, [f"--config={each}"]) for each in config]
    folders = [folder_name(name) for name, _ in found]
    double = {name for name, _ in found if folders.count(folder_name(name)) > 1}
    if double:
        raise ValueError(f"Names of configs or changes must differ, found {', '.join(sorted(double))} more than once.")
    return dict(found)


def change_of(change: str) -> tuple[str, list[str]]:
    """The name and the options of a change.

    Raises:
        ValueError: if it is not of the form ``NAME: OPTION=VALUE …``.

    Example:
        >>> change_of("MAML + LIL: model=LIL model.phase_weight=0.1")
        ('MAML + LIL', ['--model=LIL', '--model.phase_weight=0.1'])
        >>> change_of("model.inner_lr=0.1")
        ('model.inner_lr=0.1', ['--model.inner_lr=0.1'])
    """
    head = re.match(r"([^=:]+):\s*(.*)$", change, re.DOTALL)
    name, rest = (head[1].strip(), head[2]) if head else (change.strip(), change)
    words = [word.removeprefix("--") for word in shlex.split(rest)]
    wrong = [word for word in words if "=" not in word]
    if wrong or not name:
        raise ValueError(
            f"changes: {change!r} is not of the form 'NAME: OPTION=VALUE OPTION=VALUE' with options of `fit`, such as "
            f"'ANIL: model=ANIL model.inner_lr=0.1'" + (f"; {wrong[0]!r} has no value." if wrong else ".")
        )
    return name, [f"--{word}" for word in words]


def folder_name(name: str) -> str:
    """A name as that of a folder.

    Example:
        >>> folder_name("MAML + LIL")
        'MAML_+_LIL'
    """
    return re.sub(r"[^\w.+=-]+", "_", name).strip("_.") or "_"


def prepared(names: Mapping[str, Sequence[str]], words: Sequence[str], seeds: Sequence[int], output: Path) -> list[Run]:
    """Builds each config once, compares it with its data, and writes the configs of all runs; seed by seed.

    Raises:
        ValueError: if something does not fit, or a folder holds a run of other settings.
    """
    configs: dict[str, dict[str, Any]] = {}
    for name, own in names.items():
        # Options that hold for all come before those of a change.
        line = [own[0], *words, *own[1:], f"--seed_everything={seeds[0]}", *quiet_words()]
        cli = lightning_cli(line, PROG, run=False, save_config_callback=None)
        if cli.datamodule is None:
            raise ValueError(f"{name} names no data; add a `data:` section, as for `lightning-gp fit`.")
        check_config(name, cli.model, cli.datamodule)
        config = cli.config.clone()
        config.pop("config", None)
        configs[name] = yaml.safe_load(cli.parser.dump(config, skip_none=False, skip_validation=True))
    runs = [
        Run(seed, name, str(output / folder_name(name) / f"seed_{seed}"), os.getcwd())
        for seed in seeds
        for name in names
    ]
    placed_configs = [placed(configs[run.name], Path(run.folder), run.seed) for run in runs]
    for run, config in zip(runs, placed_configs, strict=True):
        write_config(config, Path(run.folder))
    return runs


def check_config(name: str, model: LightningModule, data: LightningDataModule) -> None:
    """Tries out the first test batch and the first training batch, so that what is wrong shows before hours.

    Raises:
        TypeError: naming the config or change.
        ValueError: likewise.
    """
    check_fits(model, data, name)
    if isinstance(model, EnvironmentModule):
        data.setup("fit")
        try:
            model.checked(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error


def _told(run: Run, metric: str | None) -> str:
    result = read_result(Path(run.folder))
    assert result is not None
    name = metric or ("accuracy" if "accuracy" in result.values else "loss")
    value = result.values.get(name)
    number = "" if value is None else f"{name} {with_interval(name, value, result.values.get(f'{name}_ci95'))}, "
    return f"{number}{result.notes['seconds']:,.0f} s"
