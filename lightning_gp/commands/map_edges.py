"""The edge of stability that ``lightning-gp map`` draws into a map, in a file beside the map's own."""

from __future__ import annotations

import math
from pathlib import Path

from lightning_gp.runs.folders import read_json, write_json
from lightning_gp.trainability.plot import Lines
from lightning_gp.tuning.module_map import ModuleMap


def edge_lines(trainability: ModuleMap, output: Path) -> Lines:
    """The edge at every value, kept beside the map for ``map plot``; nothing where it cannot be had, which is said.

    Args:
        trainability: the map.
        output: its file.
    """
    try:
        label, edge = trainability.edges()
    except (ValueError, RuntimeError) as error:
        print(f"The edge of stability is not drawn: {error}", flush=True)
        return ()
    write_json(_beside(output), {"lines": {label: [value if math.isfinite(value) else None for value in edge]}})
    return ((label, edge),)


def kept_lines(path: Path) -> Lines:
    """What ``edge_lines`` has kept beside a map's file, or nothing.

    Args:
        path: the map's file.
    """
    if not _beside(path).is_file():
        return ()
    found = read_json(_beside(path))["lines"]
    return tuple((name, [math.inf if value is None else value for value in line]) for name, line in found.items())


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-edge.json")
