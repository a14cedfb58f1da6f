"""The cells of a map on their way: in which order they are computed, and what is seen and kept of them meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.storage import Cell, Journal


def in_turn(cells: Sequence[Cell]) -> list[Cell]:
    """Seed after seed; within a seed in a fixed random order, so that the time left is estimated from all kinds."""
    order: list[Cell] = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        own = [cell for cell in cells if cell.seed == seed]
        random.Random(0).shuffle(own)
        order += own
    return order


def recorded(
    outcomes: Iterator[tuple[Cell, Outcome]],
    journal: Journal | None,
    total: int,
    done: int,
    progress: bool,
    title: str = "Trainability map",
) -> dict[Cell, Outcome]:
    """Writes each cell down when it is finished, under a progress bar.

    Args:
        outcomes: of cells, as they come.
        journal: where they are written; None for nowhere.
        total: number of cells.
        done: how many of them were there before.
        progress: whether to show the bar.
        title: of the bar.

    Returns:
        All outcomes.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    found: dict[Cell, Outcome] = {}
    with tqdm(total=total, initial=done, unit="cell", desc=title, disable=not progress) as bar:
        diverged = 0
        for cell, outcome in outcomes:
            found[cell] = outcome
            if journal is not None:
                journal.add(cell, outcome)
            diverged += outcome.diverged
            bar.set_postfix(diverged=diverged, refresh=False)
            bar.update()
    return found
