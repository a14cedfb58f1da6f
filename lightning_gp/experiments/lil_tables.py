"""Tables 2-5 of the LIL paper, cell by cell, given the images.

    lightning-gp reproduce lil-table2 --list
    lightning-gp reproduce lil-table2 --cell maml+lil/5-shot/mini --data-dir data --seeds 0 1 2
    lightning-gp reproduce lil-table2 --aggregate

The images of a data set are looked for in ``<data-dir>/mini``, ``tiered``, ``cars`` and ``cub``, as its data module
wants them; with ``--class-folders`` in ``<data-dir>/mini/{train,val,test}/<class>/``, whatever these are. A trained
network is kept in ``--runs`` and serves all tables; a finished cell and seed is skipped and a killed one goes on.
See ``lil_cells`` for the settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_gp._lightning import pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.experiments.built import build_data, build_module
from lightning_gp.experiments.domains import as_text, check_fits, summary
from lightning_gp.experiments.lil_cells import DATA, NETWORKS, Cell, Options, cells, chosen, data, stages
from lightning_gp.experiments.runs import evaluated, same_settings, train, write_json


def run_cell(cell: Cell, seed: int, options: Options, runs: Path, accelerator: str = "auto") -> dict[str, Any]:
    """Trains (or finds) the network of one cell and seed and tests it.

    Args:
        cell: of any table.
        seed: of weights and episodes.
        options: see ``Options``.
        runs: folder of all runs.
        accelerator: of the Trainer.

    Returns:
        What is kept in ``test_<data set>.json``: all test numbers, and the iterations.

    Raises:
        ValueError: if the images do not fit the network, or the folder holds a run with other settings.
        FileNotFoundError: if there are no images.
    """
    folder = _folder(cell, runs) / f"seed_{seed}"
    pretrained = folder / "pretraining" / "final.ckpt"
    plan = stages(cell, options, str(pretrained))
    total = sum(iterations for _, iterations in plan)
    shapes = {"image_size": options.image_size, "widths": options.widths, "class_folders": options.class_folders}
    same_settings(folder, {"iterations": total, "val_episodes": options.val_episodes, **shapes})
    path = folder / f"test_{cell.test}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["test_episodes"] == options.test_episodes:
            return kept
    note = f"{cell.network} {cell.method} {cell.shots}-shot {cell.train}, seed {seed}"
    test = build_data(data(cell.test, cell.shots, seed, total, options))
    pl.seed_everything(seed, verbose=False)
    check_fits(build_module(plan[0][0]), test, cell.test)
    for config, iterations in plan:
        last = config is plan[-1][0]
        pl.seed_everything(seed, verbose=False)
        module = build_module(config)
        images = build_data(data(cell.train, cell.shots, seed, iterations, options))
        place = folder if last else pretrained.parent
        checkpoint = train(module, images, place, iterations, note, best=last, accelerator=accelerator)
    weights = {"class_path": "lightning_gp.networks.load_pretrained"}
    network = {**weights, "init_args": {"network": _plain(plan[0][0]), "checkpoint": str(checkpoint)}}
    config["init_args"]["network"] = network
    result = {
        **evaluated(build_module(config), test, accelerator),
        "iterations": total,
        "test_episodes": options.test_episodes,
    }
    write_json(path, result)
    return result


def aggregate(table: int, runs: Path) -> dict[str, Any]:
    """Mean and standard deviation over the finished seeds of every cell, beside the published numbers.

    Raises:
        ValueError: if seeds of one cell were trained for different numbers of iterations.
    """
    result: dict[str, Any] = {}
    for cell in cells(table):
        files = sorted(_folder(cell, runs).glob(f"seed_*/test_{cell.test}.json"))
        results = [json.loads(path.read_text()) for path in files]
        row: dict[str, Any] = {"published": cell.published}
        if results:
            iterations = {each["iterations"] for each in results}
            if len(iterations) > 1:
                raise ValueError(f"The seeds of {cell.name} in {runs} had different iterations: {sorted(iterations)}.")
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
        rows.setdefault(f"{cell.method} ({cell.shots})", []).append(as_text(found) if "mean" in found else "–")
        rows.setdefault(f"{cell.method} ({cell.shots}), L22", []).append(cell.published)
        trials |= {found["iterations"]} - {full} if "iterations" in found else set()
    columns = list(dict.fromkeys(cell.pair for cell in everything))
    print(f"Table {table}: accuracy in percent, mean ± standard deviation over seeds (shots in parentheses)")
    print(f"{'':24}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows.items():
        print(f"{name:24}" + "".join(f"{value:>16}" for value in values))
    if trials:
        print(f"Trials, not comparable: {', '.join(map(str, sorted(trials)))} instead of {full:g} iterations.")


def print_configs(found: Sequence[Cell], options: Options, runs: Path, seed: int) -> None:
    """Every training of the cells as a config for ``lightning-gp fit``."""
    import yaml  # type: ignore[import-untyped]

    for cell in found:
        folder = _folder(cell, runs) / f"seed_{seed}"
        for config, iterations in stages(cell, options, str(folder / "pretraining" / "final.ckpt")):
            content = {
                "seed_everything": seed,
                "model": config,
                "data": data(cell.train, cell.shots, seed, iterations, options),
                "trainer": {"max_steps": iterations, "devices": 1},
            }
            print(f"--- # {cell.name}\n{yaml.safe_dump(content, sort_keys=False)}", end="")


def _folder(cell: Cell, runs: Path) -> Path:
    return runs / cell.network / cell.method / f"{cell.shots}-shot" / cell.train


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    network: dict[str, Any] = config["init_args"]["network"]
    return network


def main(table: int, arguments: Sequence[str] | None = None) -> None:
    """The command line of one table."""
    parser = argparse.ArgumentParser(
        f"lightning-gp reproduce lil-table{table}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="print the cells' names")
    action.add_argument("--cell", nargs="+", help="run these cells; * stands for anything")
    action.add_argument("--aggregate", action="store_true", help="print and write the table from what is finished")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each (default: 0 1 2)")
    parser.add_argument("--data-dir", default=Options.data_dir, help=f"holds the folders {', '.join(DATA)}")
    parser.add_argument("--class-folders", action="store_true", help="see above")
    parser.add_argument("--iterations", type=int, help="instead of the paper's, for a trial")
    parser.add_argument("--image-size", type=int, default=Options.image_size, help="(default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", help="channels of Conv4 (1 number) or ResNet-12 (4)")
    parser.add_argument("--val-episodes", type=int, default=Options.val_episodes, help="(default: %(default)s)")
    parser.add_argument("--test-episodes", type=int, default=Options.test_episodes, help="(default: %(default)s)")
    parser.add_argument("--print-config", action="store_true", help="with --cell: print configs for `fit`, run nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/lil"), help="folder of all runs (default: %(default)s)")
    parser.add_argument("--accelerator", default="auto", help="of the Trainer (default: %(default)s)")
    given = vars(parser.parse_args(arguments))
    given["widths"] = tuple(given["widths"]) if given["widths"] else None
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    if given["list"]:
        print("\n".join(cell.name for cell in cells(table)))
    elif given["aggregate"]:
        content = aggregate(table, given["runs"])
        print_table(table, content)
        write_json(given["runs"] / f"table{table}.json", content)
    elif given["print_config"]:
        print_configs(chosen(table, given["cell"]), options, given["runs"], given["seeds"][0])
    else:
        keep_freed_memory()
        for cell in chosen(table, given["cell"]):
            for seed in given["seeds"]:
                result = run_cell(cell, seed, options, given["runs"], given["accelerator"])
                interval = f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_ci95']:.2f} %"
                print(f"{cell.name}, seed {seed}: {interval} of {result['test_episodes']} episodes", flush=True)


table2, table3, table4, table5 = (partial(main, number) for number in (2, 3, 4, 5))
