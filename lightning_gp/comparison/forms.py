"""A comparison as text, CSV, LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Protocol

from lightning_gp.comparison.intervals import Row
from lightning_gp.runs.ending import table, with_interval

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    letter: "\\" + letter for letter in "&%$#_{}"
}


class Compared(Protocol):
    """What a table shows: ``Comparison``."""

    @property
    def metric(self) -> str | None: ...  # noqa: D102

    @property
    def baseline(self) -> str | None: ...  # noqa: D102

    @property
    def seeds(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def rows(self) -> list[Row]: ...  # noqa: D102

    @property
    def test_episodes(self) -> int | None: ...  # noqa: D102

    @property
    def same_tests(self) -> bool: ...  # noqa: D102

    def values(self, name: str) -> list[float]: ...  # noqa: D102


def cells(comparison: Compared) -> list[list[str]]:
    """Title and rows, as words."""
    metric, episodes = str(comparison.metric), [row.estimate.over_episodes for row in comparison.rows]
    several = len(comparison.seeds) > 1 and any(half is not None for half in episodes)
    rows = [["", metric, *(["over episodes"] if several else []), f"minus {comparison.baseline}"]]
    for row in comparison.rows:
        found = [row.name, with_interval(metric, row.estimate.value, row.estimate.half_width)]
        if several:
            whole = with_interval(metric, row.estimate.value, row.estimate.over_episodes)
            found.append("".join(whole.partition("±")[1:]))
        minus = ""
        if row.minus is not None:
            sign = "+" if row.minus.value > 0 else ""
            minus = sign + with_interval(metric, row.minus.value, row.minus.half_width)
            minus += "" if row.paired else " *"
        rows.append([*found, minus])
    return rows if len(comparison.rows) > 1 else [each[:-1] for each in rows]


def notes(comparison: Compared) -> list[str]:
    """What the intervals say."""
    seeds, count, rows = comparison.seeds, comparison.test_episodes, comparison.rows
    episodes = "" if count is None else f", {count:,} test episodes each"
    if len(seeds) > 1:
        lines = [f"95 % intervals over {len(seeds)} seeds (Student's t){episodes}."]
        if any(row.estimate.over_episodes is not None for row in rows):
            lines.append("Over episodes: of these trained weights alone, how training varies left out.")
    else:
        lines = [f"95 % intervals over episodes of one seed{episodes}: how training varies is not in them."]
    if comparison.same_tests:
        lines.append("All seeds were tested on the same examples: how those vary is not in the intervals over seeds.")
    if any(row.minus is not None and row.paired for row in rows):
        lines.append("Differences are paired: same seeds, same test data. Not corrected for how many there are.")
    if any(not row.paired for row in rows):
        lines.append("* tested on other episodes or examples, and so not paired.")
    return lines


def as_text(comparison: Compared) -> str:
    """Aligned columns."""
    return "\n".join([*table(cells(comparison)), "", *notes(comparison)])


def as_markdown(comparison: Compared) -> str:
    """A table of Markdown."""
    title, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(comparison)]
    lines = [title, ["---"] + ["---:"] * (len(title) - 1), *rows]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in lines), "", " ".join(notes(comparison))])


def as_latex(comparison: Compared) -> str:
    """A tabular with the rules of booktabs; the notes are comments."""
    title, *rows = [[escaped(cell) for cell in row] for row in cells(comparison)]
    body = [" & ".join(row) + r" \\" for row in rows]
    frame = [r"\begin{tabular}{l" + "r" * (len(title) - 1) + "}", r"\toprule", " & ".join(title) + r" \\"]
    comments = [f"% {line}" for line in notes(comparison)]
    return "\n".join([*comments, *frame, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def as_csv(comparison: Compared) -> str:
    """All numbers in full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts, seeds = ["", "_over_seeds", "_over_episodes"], [f"seed_{seed}" for seed in comparison.seeds]
    title = ["name", "metric", "test_episodes", *(f"mean{part}" for part in parts), "baseline"]
    writer.writerow([*title, *(f"minus{part}" for part in parts), "paired", *seeds])
    for row in comparison.rows:
        first = [row.name, comparison.metric, comparison.test_episodes, *row.estimate, comparison.baseline]
        writer.writerow([*first, *(row.minus or ("", "", "")), row.paired, *comparison.values(row.name)])
    return file.getvalue().rstrip("\n")


def escaped(text: str) -> str:
    r"""A cell for LaTeX.

    Example:
        >>> escaped("50% & more"), escaped("-12.5 ± 3.1 %")
        ('50\\% \\& more', '$-$12.5 $\\pm$ 3.1\\,\\%')
    """
    words = "".join(LATEX.get(letter, letter) for letter in text).replace("±", r"$\pm$")
    return re.sub(r"^([+-])(?=\d)", r"$\1$", words.replace(r" \%", r"\,\%"))


FORMS: dict[str, Callable[[Compared], str]] = {
    "text": as_text,
    "csv": as_csv,
    "latex": as_latex,
    "markdown": as_markdown,
}
