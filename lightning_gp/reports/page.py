"""``report``: one page of a run that needs no server, no network and no script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lightning_gp.diagnosis.advice import advice
from lightning_gp.files import replacing
from lightning_gp.plots import require_matplotlib
from lightning_gp.reports import sections
from lightning_gp.reports.html import figures, section, sentences
from lightning_gp.reports.logs import Logs, read_logs
from lightning_gp.reports.meanings import meanings
from lightning_gp.reports.panels import EDGE, panels
from lightning_gp.reports.style import STYLE


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Writes one self-contained page of HTML about a run, from its folder: ``metrics.csv``, config, checkpoints.

    Results, what to change, the distance to the edge, all curves, what every logged number means and between which
    bounds it lies, pictures, config and versions. Nothing is trained or measured, and no network is needed to read it.

    Args:
        run: folder of the run, which holds the ``metrics.csv`` of Lightning's CSVLogger.
        output: file to write; None for ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if there is no such folder, or no metrics in it.
        ImportError: if matplotlib is not installed.
    """
    require_matplotlib()
    logs = read_logs(Path(run))
    path = Path(output) if output is not None else logs.folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page(logs), "utf-8")
    return path


def page(logs: Logs) -> str:
    """The page, without anything outside of it."""
    *_, parent, title = logs.folder.absolute().parts
    title = f"{parent}/{title}" if re.fullmatch(r"(seed|version)_\d+", title) else title
    algorithm = _class(logs.settings.get("model")) or _named(logs.saved.get("hyper_parameters"))
    declared = meanings(logs.curves, algorithm)
    drawn, constant = panels({key: curve for key, curve in logs.curves.items() if not key.endswith(EDGE)})
    pieces = [
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle(logs, algorithm))}</p></header>",
        section("Results", sections.results(logs)),
        section("What the numbers say", sentences(advice(_bare(logs.last)))),
        section("Distance to the edge", sections.edge(logs)),
        *(section(name.capitalize(), figures(each, declared)) for name, each in drawn.items()),
        section("Did not change", sections.constants(constant)),
        section("Pictures", sections.pictures(logs.pictures)),
        section("What was logged", sections.logged(logs, declared), wide=True),
        section("Checkpoints", sections.checkpoints(logs)),
        section("Config", sections.config(logs)),
        section("Versions", sections.versions(logs)),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{STYLE}'
    body = "\n".join(piece for piece in pieces if piece)
    head += f"<title>{escape(title)}</title>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def subtitle(logs: Logs, algorithm: str) -> str:
    """Algorithm, network, data, seed, and how long it trained."""
    model = (logs.settings.get("model") or {}).get("init_args") or logs.saved.get("hyper_parameters") or {}
    network = _class(model.get("network"))
    data = _class(logs.settings.get("data")) or _named(logs.saved.get("datamodule_hyper_parameters"))
    of, on = f" of {network}" if network else "", f" on {data}" if data else ""
    parts = [
        f"{algorithm}{of}{on}".strip(),
        f"{logs.epochs:,} epoch{'s' if logs.epochs != 1 else ''}, {logs.steps:,} steps",
        f"seed {logs.settings['seed_everything']}" if "seed_everything" in logs.settings else "",
    ]
    return " · ".join(part for part in parts if part)


def _bare(values: Mapping[str, float]) -> dict[str, float]:
    """The values that advice is given on, without a callback's prefix."""
    names = ("learning_rates/", "gradients/", "curvature/", "linearity/")
    found: dict[str, float] = {}
    for key, value in values.items():
        start = next((key.index(name) for name in names if name in key and not key.startswith(("val/", "test/"))), None)
        if start is not None:
            found.setdefault(key[start:], value)
    return found


def _class(section: Any) -> str:
    """The class that a section of a config names."""
    path = section.get("class_path", "") if isinstance(section, Mapping) else section
    return path.rpartition(".")[2] if isinstance(path, str) else ""


def _named(hyperparameters: Any) -> str:
    return str((hyperparameters or {}).get("_class_path", "")).rpartition(".")[2]
