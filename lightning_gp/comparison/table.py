"""A comparison: rows of means with intervals, differences to one of them, as text, CSV, LaTeX and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_gp.comparison.forms import FORMS
from lightning_gp.comparison.intervals import Row, difference, mean
from lightning_gp.comparison.outcome import Result
from lightning_gp.comparison.picture import draw
from lightning_gp.files import replacing
from lightning_gp.plots import save_figure
from lightning_gp.runs.folders import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["text", "csv", "latex", "markdown"]
FILES: dict[str, Kind] = {"table.txt": "text", "table.csv": "csv", "table.tex": "latex", "table.md": "markdown"}


@dataclass(frozen=True)
class Comparison:
    """Trainings by name and seed; ``print(comparison)`` shows the table, a notebook shows it by itself.

    Args:
        results: of each name, those of each seed; the same seeds for all.
        metric: what is compared; None for ``"accuracy"`` where all have it, else ``"loss"``.
        baseline: the name that differences are taken to; None for the first.

    Raises:
        ValueError: if a result lacks the metric, the baseline is no name, or the seeds differ.

    Example:
        >>> runs = {"MAML": {0: Result({"loss": 1.0}), 1: Result({"loss": 1.2})}}
        >>> runs["ANIL"] = {0: Result({"loss": 1.3}), 1: Result({"loss": 1.5})}
        >>> [round(row.estimate.value, 2) for row in Comparison(runs).rows]
        [1.1, 1.4]
    """

    results: Mapping[str, Mapping[int, Result]]
    metric: str | None = None
    baseline: str | None = None

    def __post_init__(self) -> None:
        """Checks that everything is there."""
        if not self.results or len({tuple(seeds) for seeds in self.results.values()}) > 1 or not self.seeds:
            raise ValueError("A comparison needs at least one name, and the same seeds for all names.")
        known = set.intersection(*(set(result.values) for result in self._all))
        metric = self.metric or next((name for name in ("accuracy", "loss") if name in known), None)
        if metric not in known:
            raise ValueError(
                f"metric={self.metric!r} is not logged in the test of all. They have {', '.join(sorted(known))}."
            )
        baseline = next(iter(self.results)) if self.baseline is None else self.baseline
        if baseline not in self.results:
            raise ValueError(f"baseline={baseline!r} is none of {', '.join(self.results)}.")
        object.__setattr__(self, "metric", metric)
        object.__setattr__(self, "baseline", baseline)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each training."""
        return tuple(next(iter(self.results.values())))

    @property
    def rows(self) -> list[Row]:
        """One of each name."""
        return [self._row(name) for name in self.results]

    def __str__(self) -> str:
        """The table as text."""
        return self.table()

    def _repr_markdown_(self) -> str:
        return self.table("markdown")

    def table(self, kind: Kind = "text") -> str:
        """The table.

        Args:
            kind: ``"text"``, ``"csv"`` (all numbers in full precision), ``"latex"`` (needs the package booktabs) or
                ``"markdown"``.

        Raises:
            ValueError: if there is no such kind.
        """
        if kind not in FORMS:
            raise ValueError(f"kind={kind!r} must be one of {', '.join(FORMS)}.")
        return FORMS[kind](self)

    def plot(self) -> Figure:
        """Two panels: the validation over training, with bands over seeds, and the test with intervals.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        assert self.metric is not None
        curves = {name: [run.curves for run in seeds.values()] for name, seeds in self.results.items()}
        points = {row.name: row.estimate for row in self.rows}
        seeds = {name: self.values(name) for name in self.results}
        return draw(curves, points, seeds, self.metric)

    def as_dict(self) -> dict[str, Any]:
        """Metric, baseline, rows, and what was tested, as JSON can hold it."""
        rows = [
            {
                "name": row.name,
                **_plain(row.estimate._asdict()),
                "minus": None if row.minus is None else _plain(row.minus._asdict()),
                "paired": row.paired,
                "seeds": _plain(dict(zip(map(str, self.seeds), self.values(row.name), strict=True))),
            }
            for row in self.rows
        ]
        return {"metric": self.metric, "baseline": self.baseline, "test_episodes": self.test_episodes, "rows": rows}

    def write(self, folder: Path) -> list[Path]:
        """Writes ``table.txt``, ``.csv``, ``.tex`` and ``.md``, and ``compare.json``, ``.png`` and ``.pdf``."""
        for name, kind in FILES.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(self.table(kind) + "\n", "utf-8")
        write_json(folder / "compare.json", self.as_dict())
        pictures = save_figure(self.plot(), folder / "compare", ("png", "pdf"))
        return [*(folder / name for name in FILES), folder / "compare.json", *pictures]

    # -- numbers ------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> list[Result]:
        return [result for seeds in self.results.values() for result in seeds.values()]

    def values(self, name: str) -> list[float]:
        """The metric of each seed."""
        return [result.values[str(self.metric)] for result in self.results[name].values()]

    def _episodes(self, name: str) -> list[Sequence[float]]:
        found = [result.episodes.get(str(self.metric), ()) for result in self.results[name].values()]
        return found if all(found) else []

    def _row(self, name: str) -> Row:
        values, episodes, baseline = self.values(name), self._episodes(name), str(self.baseline)
        estimate = mean(values, episodes)
        if name == baseline:
            return Row(name, estimate, None, True)
        pairs = zip(self.results[name].values(), self.results[baseline].values(), strict=True)
        paired = all(a.batches is not None and a.batches == b.batches for a, b in pairs)
        minus = difference(values, self.values(baseline), episodes, self._episodes(baseline), paired)
        return Row(name, estimate, minus, paired)

    @property
    def same_tests(self) -> bool:
        """Whether all seeds of a name were tested on the same batches, as with a fixed test set."""
        found = [{result.batches for result in seeds.values()} for seeds in self.results.values()]
        return len(self.seeds) > 1 and all(len(each) == 1 and None not in each for each in found)

    @property
    def test_episodes(self) -> int | None:
        """Test episodes of each run, if it is the same for all."""
        counts = {len(result.episodes.get(str(self.metric), ())) for result in self._all}
        return counts.pop() if len(counts) == 1 and 0 not in counts else None


def _plain(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Numbers that JSON has."""
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
