"""What a command says when it begins and when it has ended: what ran, the results, where they are, what to do next."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import Callback
from lightning_gp.modules.statistics import EpisodeMean
from lightning_gp.runs.summaries import as_text

SHARES = ("accuracy",)
"""Names of numbers in [0, 1] that are shown in percent."""


def beginning(model: Any, data: Any, trainer: Any) -> str:
    """One line: algorithm, network, data, device."""
    network = getattr(model, "network", None)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    of = "" if network is None else f" of {type(network).__name__}"
    on = "" if data is None else f" on {type(data).__name__}"
    devices = f"{trainer.num_devices} × " if trainer.num_devices > 1 else ""
    return f"{type(model).__name__}{of}, {count:,} parameters{on}, {devices}{trainer.strategy.root_device.type}"


def ending(trainer: Any, config: Path | None) -> str:
    """Where a training has left its checkpoint and its metrics, and the command that tests it."""
    lines = [f"Trained:    {trainer.current_epoch:,} epochs, {trainer.global_step:,} steps."]
    best = _best(trainer)
    if best is not None:
        best = shown(best)
        callback = trainer.checkpoint_callback
        score = "" if callback.best_model_score is None else f" ({callback.monitor} {callback.best_model_score:.4g})"
        lines.append(f"Checkpoint: {best}{score}")
    lines += metrics(trainer)
    if best is not None and config is not None:
        lines.append(f"Next:       lightning-gp test --config {config}")
    return "\n".join(lines)


def metrics(trainer: Any) -> list[str]:
    """A line for each place where a logger has written numbers."""
    found = []
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder:
            file = Path(folder) / "metrics.csv"
            found.append(f"Metrics:    {shown(file if file.is_file() else folder)}")
    return list(dict.fromkeys(found))


def shown(path: str | Path) -> str:
    """A path as one would type it here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _best(trainer: Any) -> str | None:
    for each in trainer.checkpoint_callbacks:
        if each.best_model_path or each.last_model_path:
            return str(each.best_model_path or each.last_model_path)
    return None


class Episodes(Callback):
    """Counts the episodes that a module is evaluated on, in one process.

    Attributes:
        count: how many; None if the module does not tell.
    """

    count: int | None = None

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning forgets the sums right after it."""
        sums = getattr(pl_module, "statistics", {}).values()
        counts = {int(each.count) for each in sums if isinstance(each, EpisodeMean)}
        self.count = counts.pop() if len(counts) == 1 and trainer.world_size == 1 else None

    on_validation_epoch_end = on_test_epoch_end


def results(values: Mapping[str, float], episodes: int | None = None) -> str:
    """A table of what validation or test has found: a row for each number, what inner steps change side by side.

    Args:
        values: by key, such as ``test/accuracy``, ``test/accuracy_ci95`` and ``test/accuracy_step_0``.
        episodes: over how many.

    Example:
        >>> print(results({"test/accuracy": 0.951, "test/accuracy_ci95": 0.004}, 1000))
        accuracy  95.1 ± 0.4 %
        95 % intervals over 1,000 episodes
    """
    lines = table(result_rows(values))
    if any(re.search(r"_ci95(/|$)", key) for key in values):
        lines.append("95 % intervals" + (f" over {episodes:,} episodes" if episodes else " over episodes"))
    return "\n".join(lines)


def result_rows(values: Mapping[str, float]) -> list[list[str]]:
    """The rows of ``results``, the first of them a title where inner steps change something."""
    names = [key.partition("/")[2] for key in values if not re.search(r"_ci95(/|$)", key)]
    steps = [int(found[1]) for name in names if (found := re.search(r"_step_(\d+)", name))]
    last = max(steps, default=0)
    rows = []
    for name in names:
        if re.search(r"_step_\d+", name):
            continue
        before, after = (_key(name, f"_step_{step}") for step in (0, last))
        shown = [_cell(values, name)]
        if last and after in names:
            shown = [_cell(values, before), _cell(values, after)]
        rows.append([name, *shown])
    if last:
        rows.insert(0, ["", "before adaptation", f"after {last} step{'s' if last > 1 else ''}"])
    return rows


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; short rows are allowed."""
    columns = max(map(len, rows), default=0)
    widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def with_interval(name: str, value: float, half_width: float | None) -> str:
    """``95.1 ± 0.4 %``; digits go by the interval.

    Example:
        >>> with_interval("accuracy", 0.9512, 0.0041), with_interval("loss", 0.12345, 0.0123)
        ('95.1 ± 0.4 %', '0.123 ± 0.012')
    """
    share = name.partition("/")[0].removeprefix("worst_").partition("_step_")[0] in SHARES
    factor = 100 if share else 1
    if half_width is None or not math.isfinite(half_width):
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"
    scaled = factor * half_width
    digits = 1 if scaled == 0 else max(0, (0 if share else 1) - math.floor(math.log10(scaled)))
    return as_text(value, half_width, max(digits, 1 if share else 0), factor) + (" %" if share else "")


def _cell(values: Mapping[str, float], name: str) -> str:
    by_name = {key.partition("/")[2]: float(value) for key, value in values.items()}
    return with_interval(name, by_name[name], by_name.get(_key(name, "_ci95")))


def _key(name: str, suffix: str) -> str:
    """The name of a number with a suffix, which stands in front of the number of the loader."""
    first, slash, loader = name.partition("/dataloader_idx_")
    return f"{first}{suffix}{slash}{loader}"
