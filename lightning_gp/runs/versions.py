"""What computed a run, written down beside it."""

from __future__ import annotations

import importlib
from pathlib import Path

from lightning_gp._lightning import NAMESPACE
from lightning_gp.runs.folders import write_json
from lightning_gp.trainability.describe import versions

VERSIONS = "versions.json"


def all_versions() -> dict[str, str]:
    """Of the package, torch, Python and Lightning.

    Example:
        >>> sorted(all_versions())
        ['lightning_gp', 'python', 'pytorch_lightning', 'torch']
    """
    return {**versions(), NAMESPACE.replace(".", "_"): str(importlib.import_module(NAMESPACE).__version__)}


def write_versions(folder: Path) -> None:
    """Writes those of this process into a run's folder; those of the process that trained last count."""
    write_json(folder / VERSIONS, all_versions())
