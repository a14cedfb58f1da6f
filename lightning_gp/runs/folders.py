"""Results on disk: whole or not there, kept when finished, never overwritten by those of other settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp.files import replacing

SETTINGS = "settings"


def write_json(path: Path, content: object) -> None:
    """Writes ``content`` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows that all have the keys of the first, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def same(path: Path, before: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Compares the settings of a result that is there with those of one to be made.

    Raises:
        ValueError: if they differ, naming what.
    """
    current = json.loads(json.dumps(settings))
    different = sorted(key for key in before.keys() | current.keys() if before.get(key) != current.get(key))
    if different:
        changes = ", ".join(f"{key} was {before.get(key)!r}, is {current.get(key)!r}" for key in different)
        raise ValueError(
            f"{path} was made with other settings: {changes}. Nothing was overwritten; give another folder (--output), "
            "or remove it."
        )


def check_settings(path: Path, settings: Mapping[str, object]) -> bool:
    """Whether there is a result at ``path``, a JSON object whose ``settings`` are these.

    Raises:
        ValueError: if there is one of other settings, naming what differs.
    """
    if path.is_file():
        same(path, read_json(path).get(SETTINGS, {}), settings)
    return path.is_file()


def same_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes ``settings`` into a new folder, and compares them with what an old one was made with.

    Raises:
        ValueError: if they differ, naming what.
    """
    path = folder / f"{SETTINGS}.json"
    if not check_settings(path, settings):
        write_json(path, {SETTINGS: settings})


def kept(path: Path, settings: Mapping[str, object], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The result at ``path``; made, and kept there with its settings, if it is not there yet.

    Args:
        path: a JSON file.
        settings: what the result depends on.
        make: computes it.

    Raises:
        ValueError: if there is a result of other settings.
    """
    if not check_settings(path, settings):
        write_json(path, {SETTINGS: settings, **make()})
    result: dict[str, Any] = read_json(path)
    return result
