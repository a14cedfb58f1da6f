"""The file of a map: a line that says what was computed, and a line for each finished cell.

Every line is a JSON object ``{"crc32": …, "record": …}`` with the checksum of its record. A line is appended by a
single write when its cell is finished, so a process killed at any moment leaves a file whose last line at most is cut
off; such a line is left out. When all cells are there, the file is replaced by one with its lines in order. It holds
no times and no machine's name: however often a run was interrupted, and however it was spread, its file is the same.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lightning_gp.files import replacing
from lightning_gp.trainability.engine import Outcome

FORMAT = "lightning-gp trainability map 1"
SHARD = "shard"
Header: TypeAlias = dict[str, Any]


class Cell(NamedTuple):
    """A cell of the grid: seed, α (0 on the line of comparison) and β. Cells are stored in this order."""

    seed: int
    inner_lr: float
    outer_lr: float


def read(path: str | Path) -> tuple[Header, dict[Cell, Outcome]]:
    """Header and finished cells of a file.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no such file, or a line other than the last is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no map {path}; give the .jsonl file that `lightning-gp map` has written.")
    lines = Path(path).read_bytes().split(b"\n")
    records: list[Any] = []
    for number, line in enumerate(lines[:-1]):  # what follows the last line end was cut off, or is nothing
        record = _unsealed(line)
        if record is None:
            what = "is no file of a trainability map" if number == 0 else f"is damaged in line {number + 1}"
            raise ValueError(f"{path} {what}; nothing was changed. Delete it, or choose another file.")
        records.append(record)
    if not records or records[0].get("format") != FORMAT:
        raise ValueError(f"{path} is no file of a trainability map ({FORMAT!r}); nothing was changed.")
    header, *cells = records
    return header, {
        Cell(record["seed"], record["inner_lr"], record["outer_lr"]): Outcome(
            *(record[name] for name in Outcome._fields)
        )
        for record in cells
    }


def write(path: str | Path, header: Header, cells: Mapping[Cell, Outcome]) -> None:
    """The file with its cells in order, whole or not at all."""
    lines = [_sealed(header), *(_line(cell, cells[cell]) for cell in sorted(cells))]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(lines))


class Journal:
    """Appends finished cells to a file, which is begun if it is not there.

    Args:
        path: the file.
        header: what is computed.

    Attributes:
        cells: the finished cells.

    Raises:
        ValueError: if the file is that of other settings, naming them, or damaged.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path, self.header = Path(path), header
        self.cells: dict[Cell, Outcome] = {}
        if not self.path.exists():
            write(path, header, {})
        else:
            found, self.cells = read(path)
            check_same(found, header, path)
            self._cut_off_rest()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Puts a finished cell on disk."""
        self.cells[cell] = outcome
        os.write(self._file, _line(cell, outcome))
        os.fsync(self._file)

    def close(self) -> None:
        """Ends the writing; the file stays as it is."""
        os.close(self._file)

    def finish(self) -> None:
        """Replaces the file by the one in order."""
        write(self.path, self.header, self.cells)

    def _cut_off_rest(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)


def merge(paths: Sequence[str | Path], output: str | Path) -> None:
    """Joins the finished files of all shards into the one that a single run would have written.

    Args:
        paths: one file of each shard.
        output: the file to write; an existing one must have the same settings.

    Raises:
        ValueError: if settings differ (naming them), cells are missing, or files contradict each other.
        FileNotFoundError: if a file is missing.
    """
    if not paths:
        raise ValueError("There is nothing to merge; name the files of the shards.")
    first, _ = read(paths[0])
    whole = {key: value for key, value in first.items() if key != SHARD}
    cells: dict[Cell, Outcome] = {}
    for path in paths:
        header, own = read(path)
        check_same({key: value for key, value in header.items() if key != SHARD}, whole, path, "the first file")
        for cell, outcome in own.items():
            if cells.setdefault(cell, outcome) != outcome:
                raise ValueError(f"{path} has another result for {cell} than the files before it: {outcome}.")
    missing = [cell for cell in cells_of(whole) if cell not in cells]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(cells_of(whole))} cells are missing, the first is {missing[0]}. Finish all shards "
            "first (start their commands again to go on), and name the files of all of them."
        )
    if Path(output).exists():
        check_same(read(output)[0], whole, output, "the merged map")
    write(output, whole, cells)


def cells_of(header: Header) -> list[Cell]:
    """All cells of the grid, in order."""
    inner = [0.0, *header["inner_lrs"]] if header["zero_inner_lr"] else header["inner_lrs"]
    return [Cell(seed, alpha, beta) for seed in header["seeds"] for alpha in inner for beta in header["outer_lrs"]]


def check_same(found: Header, wanted: Header, path: str | Path, what: str = "this run") -> None:
    """Refuses a file of other settings.

    Raises:
        ValueError: naming each setting that differs.
    """
    left, right = dict(_flat(found)), dict(_flat(wanted))
    differing = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    if differing:
        shown = "; ".join(f"{name} is {left.get(name)!r}, not {right.get(name)!r}" for name in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"{path} has other settings than {what}: {shown}{more}. Nothing was overwritten; use the same settings, "
            "or another file."
        )


def _flat(value: object, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _line(cell: Cell, outcome: Outcome) -> bytes:
    return _sealed({**cell._asdict(), **outcome._asdict()})


def _dump(record: object) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=True, separators=(", ", ": "))


def _sealed(record: object) -> bytes:
    text = _dump(record)
    return f'{{"crc32": "{zlib.crc32(text.encode()):08x}", "record": {text}}}\n'.encode()


def _unsealed(line: bytes) -> Any:
    """The record, or None if the line is not what was written."""
    try:
        content = json.loads(line)
        record = content["record"]
        return record if f"{zlib.crc32(_dump(record).encode()):08x}" == content["crc32"] else None
    except (ValueError, KeyError, TypeError):
        return None
