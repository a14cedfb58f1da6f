"""``lightning-gp cross-domain``: meta-train on one data module, meta-test on any others, in one command.

lightning-gp cross-domain --config train.yaml --test_data mini.yaml cars.yaml --seeds 0 1 2
lightning-gp cross-domain --config train.yaml --test_data cars.yaml --ckpt runs/a.ckpt runs/b.ckpt
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import LightningDataModule, pl
from lightning_gp.commands.training import lightning_cli
from lightning_gp.networks.pretrained import load_pretrained
from lightning_gp.runs.command import command
from lightning_gp.runs.config import built, data_config
from lightning_gp.runs.domains import check_fits, print_domains, summary
from lightning_gp.runs.folders import kept, same_settings, write_json
from lightning_gp.trainability.grid import check_seeds

PROG = "lightning-gp cross-domain"


def main(args: Sequence[str]) -> None:
    """The command line; what it does not know goes to the config, as in ``--trainer.max_epochs=1``."""
    command(cross_domain, PROG, args, rest="words")


def cross_domain(
    config: Path,
    test_data: Sequence[Path],
    words: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    ckpt: Sequence[Path] = (),
    output: Path = Path("runs/cross_domain"),
) -> dict[str, Any]:
    """Meta-trains on one data module and meta-tests on any others; other options go to the config, as for `fit`.

    Every seed trains the config with its own weights and episodes; finished seeds are kept in the output folder and not
    trained again. Tested are the weights that a ModelCheckpoint of the config found best, or else the last ones.

    Args:
        config: as for `lightning-gp fit`: trainer, model and training data.
        test_data: YAML files with a section `data`; the config itself is one.
        words: what else the command line of `fit` has.
        seeds: one training each; one number N stands for 0 … N − 1.
        ckpt: test these checkpoints of the config's model instead of training.
        output: folder.

    Returns:
        What is written as results.json: the table, and all numbers of each run.

    Raises:
        ValueError: if two runs or two test data have one name, something does not fit, or the folder holds other runs.
        FileNotFoundError: if a file is missing.
    """
    check_seeds(seeds)
    words = [f"--config={config}", *words]
    configs = named_configs(test_data)
    tests = {name: built(LightningDataModule, each) for name, each in configs.items()}
    runs: dict[str, int | str] = {f"seed_{seed}": seed for seed in seeds}
    if ckpt:
        runs = {path.stem: str(path) for path in ckpt}
    if len(runs) < len(ckpt or seeds):
        raise ValueError("Two of the --ckpt files have the same name; all must differ.")
    check_all(words, tests, ckpt)
    results: dict[str, Any] = {}
    for name, start in runs.items():
        results[name] = _tested(words, tests, configs, start, output / name)
    table = {data: summary([result[data] for result in results.values()]) for data in tests}
    content = {"table": table, "runs": results}
    write_json(output / "results.json", content)
    print_domains(table)
    print(f"Table: {output / 'results.json'}")
    return content


def named_configs(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The data config of each file by the file's name.

    Raises:
        ValueError: if two files have the same name, or one names no data module.
    """
    configs = {path.stem: data_config(path) for path in paths}
    if len(configs) < len(paths):
        raise ValueError(
            f"--test_data {' '.join(map(str, paths))}: the names of the files name the rows, so they must differ."
        )
    return configs


def check_all(words: Sequence[str], tests: Mapping[str, LightningDataModule], checkpoints: Sequence[Path]) -> None:
    """Builds the model once, and compares it with all test data and checkpoints before anything is trained.

    Raises:
        ValueError: if one does not fit.
    """
    model = _cli(words).model
    for name, data in tests.items():
        check_fits(model, data, name)
    for path in checkpoints:
        load_pretrained(model.network, path)


def _cli(words: Sequence[str]) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # they are not those of the process, rightly
        return lightning_cli(words, prog=PROG, run=False, save_config_callback=None)


def _tested(
    words: Sequence[str],
    tests: Mapping[str, LightningDataModule],
    configs: Mapping[str, Any],
    start: int | str,
    folder: Path,
) -> dict[str, dict[str, float]]:
    seed = start if isinstance(start, int) else None
    cli = _cli(words if seed is None else _seeded(words, seed))
    settings = {"config": cli.parser.dump(cli.config), "tests": dict(configs), "start": start}

    def made() -> dict[str, Any]:
        checkpoint = _trained(cli, folder) if seed is not None else start
        result = {}
        for name, data in tests.items():
            (values,) = cli.trainer.test(cli.model, data, ckpt_path=checkpoint, verbose=False)
            result[name] = {key.removeprefix("test/"): float(value) for key, value in values.items()}
        return {"tests": result}

    same_settings(folder, settings)
    tested: dict[str, dict[str, float]] = kept(folder / "results.json", settings, made)["tests"]
    return tested


def _seeded(words: Sequence[str], seed: int) -> list[str]:
    """The config with other weights and, where the data module has a seed, other episodes."""
    seeded = [*words, f"--seed_everything={seed}"]
    data = _cli(seeded).config.data
    return [*seeded, f"--data.init_args.seed={seed}"] if "seed" in data.get("init_args", {}) else seeded


def _trained(cli: Any, folder: Path) -> str | None:
    """The best checkpoint, or None for the weights that the model has now."""
    checkpoints = [each for each in cli.trainer.callbacks if isinstance(each, pl.callbacks.ModelCheckpoint)]
    for each in checkpoints:
        each.dirpath = str(folder / "checkpoints")  # the config's folder would be shared by all seeds
    if any(isinstance(logger, pl.loggers.CSVLogger) for logger in cli.trainer.loggers):
        cli.trainer.logger = pl.loggers.CSVLogger(folder, name="", version="")
    cli.trainer.fit(cli.model, cli.datamodule)
    best = [each.best_model_path for each in checkpoints if each.monitor and each.best_model_path]
    return best[0] if best else None
