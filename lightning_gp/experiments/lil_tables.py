"""Runs and prints Tables 2-5 of the LIL paper; ``lil_cells`` says what each cell is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import LightningDataModule, LightningModule, pl
from lightning_gp.experiments.lil_cells import NETWORKS, OPTIONS, Cell, Options, cells, chosen, data, stages
from lightning_gp.runs.config import built
from lightning_gp.runs.domains import check_fits, shown, summary
from lightning_gp.runs.folders import kept, read_json, same_settings, write_json
from lightning_gp.runs.training import evaluated, train
from lightning_gp.trainability.grid import check_seeds


def run_cell(cell: Cell, seed: int, options: Options, output: Path, device: str = "auto") -> dict[str, Any]:
    """Trains (or finds) the network of one cell and seed and tests it.

    Args:
        cell: of any table.
        seed: of weights and episodes.
        options: see ``Options``.
        output: folder of all runs.
        device: where to compute.

    Returns:
        What is kept in ``test_<data set>.json``: all test numbers, and the iterations.

    Raises:
        ValueError: if the images do not fit the network, or the folder holds a run with other settings.
        FileNotFoundError: if there are no images.
    """
    folder = _folder(cell, output) / f"seed_{seed}"
    pretrained = folder / "pretraining" / "final.ckpt"
    plan = stages(cell, options, str(pretrained))
    total = sum(iterations for _, iterations in plan)
    shapes = {"image_size": options.image_size, "widths": options.widths, "class_folders": options.class_folders}
    same_settings(folder, {"iterations": total, "val_episodes": options.val_episodes, **shapes})

    def made() -> dict[str, Any]:
        note = f"{cell.network} {cell.method} {cell.shots}-shot {cell.train}, seed {seed}"
        test = built(LightningDataModule, data(cell.test, cell.shots, seed, total, options))
        pl.seed_everything(seed, verbose=False)
        check_fits(built(LightningModule, plan[0][0]), test, cell.test)
        for config, iterations in plan:
            last = config is plan[-1][0]
            pl.seed_everything(seed, verbose=False)
            module = built(LightningModule, config)
            images = built(LightningDataModule, data(cell.train, cell.shots, seed, iterations, options))
            place = folder if last else pretrained.parent
            checkpoint = train(module, images, place, iterations, note, best=last, device=device)
        weights = {"network": plan[0][0]["init_args"]["network"], "checkpoint": str(checkpoint)}
        config["init_args"]["network"] = {"class_path": "lightning_gp.networks.load_pretrained", "init_args": weights}
        tested = evaluated(built(LightningModule, config), test, device)
        return {**tested, "iterations": total, "test_episodes": options.test_episodes}

    return kept(folder / f"test_{cell.test}.json", {"test_episodes": options.test_episodes}, made)


def aggregated(table: int, output: Path) -> dict[str, Any]:
    """Mean and standard deviation over the finished seeds of every cell, beside the published numbers.

    Raises:
        ValueError: if seeds of one cell were trained for different numbers of iterations.
    """
    result: dict[str, Any] = {}
    for cell in cells(table):
        files = sorted(_folder(cell, output).glob(f"seed_*/test_{cell.test}.json"))
        results = [read_json(path) for path in files]
        row: dict[str, Any] = {"published": cell.published}
        if results:
            iterations = {each["iterations"] for each in results}
            if len(iterations) > 1:
                raise ValueError(
                    f"The seeds of {cell.name} in {output} had different iterations: {sorted(iterations)}."
                )
            row.update(summary(results), iterations=iterations.pop())
        result[cell.name] = row
    return result


def print_table(table: int, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Ours above the paper's; a dash where nothing is finished."""
    rows: dict[str, list[str]] = {}
    trials = set()
    everything = cells(table)
    full = NETWORKS[everything[0].network]["iterations"]
    for cell in everything:
        found = content[cell.name]
        rows.setdefault(f"{cell.method} ({cell.shots})", []).append(shown(found)[0] if "mean" in found else "–")
        rows.setdefault(f"{cell.method} ({cell.shots}), L22", []).append(cell.published)
        trials |= {found["iterations"]} - {full} if "iterations" in found else set()
    columns = list(dict.fromkeys(cell.pair for cell in everything))
    print(f"Table {table}: accuracy in percent, mean ± standard deviation over seeds (shots in parentheses)")
    print(f"{'':24}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows.items():
        print(f"{name:24}" + "".join(f"{value:>16}" for value in values))
    if trials:
        print(f"Trials, not comparable: {', '.join(map(str, sorted(trials)))} instead of {full:g} iterations.")


def print_configs(found: Sequence[Cell], options: Options, output: Path, seed: int) -> None:
    """Every training of the cells as a config for ``lightning-gp fit``."""
    import yaml  # type: ignore[import-untyped]

    for cell in found:
        folder = _folder(cell, output) / f"seed_{seed}"
        for config, iterations in stages(cell, options, str(folder / "pretraining" / "final.ckpt")):
            content = {
                "seed_everything": seed,
                "model": config,
                "data": data(cell.train, cell.shots, seed, iterations, options),
                "trainer": {"max_steps": iterations, "devices": 1},
            }
            print(f"--- # {cell.name}\n{yaml.safe_dump(content, sort_keys=False)}", end="")


def _folder(cell: Cell, output: Path) -> Path:
    return output / cell.network / cell.method / f"{cell.shots}-shot" / cell.train


def lil_table(
    table: int,
    list: bool = False,
    cell: Sequence[str] = (),
    aggregate: bool = False,
    print_config: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    options: Options = OPTIONS,
    output: Path = Path("runs/lil"),
    device: str = "auto",
) -> None:
    """Tables 2-5 of the LIL paper, cell by cell, given the images.

    The images of a data set are looked for in root/mini, tiered, cars and cub, as its data module wants them; with
    --class-folders in root/mini/{train,val,test}/<class>/, whatever these are. A trained network is kept in the output
    folder and serves all tables; a finished cell and seed is skipped and a killed one goes on.

    Args:
        table: 2, 3, 4 or 5.
        list: print the cells' names.
        cell: run these cells, such as maml+lil/5-shot/mini; * stands for anything.
        aggregate: print and write the table from what is finished.
        print_config: with --cell, print configs for `fit`, run nothing.
        seeds: one training each; one number N stands for 0 … N − 1.
        options: what may be changed for a trial.
        output: folder of all runs.
        device: where to compute.

    Raises:
        ValueError: if not exactly one of ``list``, ``cell`` and ``aggregate`` is given, or see ``run_cell``.
        FileNotFoundError: if there are no images.
    """
    if list + bool(cell) + aggregate != 1:
        raise ValueError("Give one of --list, --cell NAME … and --aggregate.")
    check_seeds(seeds)
    if list:
        print("\n".join(each.name for each in cells(table)))
    elif aggregate:
        content = aggregated(table, output)
        print_table(table, content)
        write_json(output / f"table{table}.json", content)
    elif print_config:
        print_configs(chosen(table, cell), options, output, seeds[0])
    else:
        for each, seed in ((each, seed) for each in chosen(table, cell) for seed in seeds):
            result = run_cell(each, seed, options, output, device)
            interval = f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_ci95']:.2f} %"
            print(f"{each.name}, seed {seed}: {interval} of {result['test_episodes']} episodes", flush=True)
