"""What an experiment leaves: a table, its numbers, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gp.files import replacing
from lightning_gp.plots import save_figure
from lightning_gp.runs.folders import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_record(path: Path, summary: Mapping[str, Any], table: str, figure: Figure) -> None:
    """Writes ``path`` with .json, .md and .png, each whole or not at all, and shows the table.

    Args:
        path: without a suffix.
        summary: what JSON can hold.
        table: in markdown.
        figure: of the same numbers.
    """
    write_json(path.with_suffix(".json"), summary)
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(table, encoding="utf-8")
    (picture,) = save_figure(figure, path)
    print(f"\n{table}\nPicture: {picture}   Table: {path}.md   Numbers: {path}.json", flush=True)
