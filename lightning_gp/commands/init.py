"""``lightning-gp init``: a starter in the user's folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lightning_gp.runs.command import command
from lightning_gp.runs.ending import shown

Kind = Literal["images", "tables", "callbacks"]
STARTERS = Path(__file__).parents[1] / "starters"
NEXT = {
    "config.yaml": "lightning-gp data check --config config.yaml",
    "compare.py": "python compare.py",
    "train.py": "python train.py",
}
"""File of a starter → what to type next, beside it."""


def init(kind: Kind, folder: Path | None = None) -> Path:
    """Writes a starter: a config or script, a module or data to put yours in place of, a README and a test.

    images: MAML on your folders of images, with a loss of your own. tables: ERM, IRMv1 and REx on the rows of a CSV
    file with a column of environments, honestly selected. callbacks: gradients, curvature and the edge of your module.

    Args:
        kind: images, tables or callbacks.
        folder: where it goes, new or empty; by default a folder of that name.

    Returns:
        The folder.

    Raises:
        ValueError: if ``kind`` is unknown, or the folder has something in it.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"lightning-gp init {kind}: choose from {', '.join(get_args(Kind))}.")
    target = Path(kind if folder is None else folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty and stays as it is; name another: lightning-gp init {kind} mine")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for template in sorted((STARTERS / kind).glob("*.in")):
            shutil.copyfile(template, made / template.stem)
        if kind == "tables":
            (made / "patients.csv").write_text(patients(), "utf-8")
        if target.is_dir():
            target.rmdir()
        made.rename(target)
    return target


def patients(rows: int = 200) -> str:
    """A table of four hospitals: a cause of death, and a shortcut that agrees with it differently in each."""
    rng = np.random.default_rng(0)
    lines = ["hospital,age,cause,shortcut,died"]
    for hospital, agreement in {"north": 0.95, "south": 0.8, "west": 0.6, "east": 0.1}.items():
        died = rng.random(rows) < 0.5
        cause = np.where(rng.random(rows) < 0.75, died, ~died) + 0.3 * rng.normal(size=rows)
        shortcut = np.where(rng.random(rows) < agreement, died, ~died) + 0.3 * rng.normal(size=rows)
        age = rng.integers(30, 90, rows)
        columns = zip(age, cause, shortcut, died, strict=True)
        lines += [f"{hospital},{years},{c:.3f},{s:.3f},{int(d)}" for years, c, s, d in columns]
    return "\n".join([*lines, ""])


def main(args: Sequence[str]) -> None:
    """Writes the starter that ``args`` ask for, and says what to type next."""
    words = list(args)
    if len(words) > 1 and not any(word.startswith("-") for word in words[:2]):  # init images mine
        words[1] = f"--folder={words[1]}"
    folder: Path = command(init, "lightning-gp init", words)
    following = next(does for name, does in NEXT.items() if (folder / name).is_file())
    print(f"{shown(folder)}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"Next: cd {shown(folder)} && {following}   (README.md says more, `pytest` tries it)")
