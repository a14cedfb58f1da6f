"""``lightning-gp report``: one page of HTML about a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gp.reports.page import report
from lightning_gp.runs.command import command
from lightning_gp.runs.ending import shown


def main(args: Sequence[str]) -> None:
    """Writes the page that ``args`` ask for, and says where it is."""
    path: Path = command(report, "lightning-gp report", args)
    print(f"Report: {shown(path)} ({path.stat().st_size / 1e6:.1f} MB; open it in any browser)")
