"""``lightning-gp reproduce``: a figure or table of the papers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

EXPERIMENTS = {
    "lin": "maps_lin",
    "sin": "maps_sin",
    "omn": "maps_omn",
    "cmn": "maps_cmn",
    "adam": "maps_adam",
    "colored-mnist": "colored_mnist",
    "gradient-norms": "gradient_norms",
    "tg": "tg",
    "aopt": "aopt",
    "tuner": "tuner",
    "lil-curves": "lil_curves",
    "lil-table1": "lil_table1",
    "lil-table2": "lil_tables:table2",
    "lil-table3": "lil_tables:table3",
    "lil-table4": "lil_tables:table4",
    "lil-table5": "lil_tables:table5",
}
"""Name → module of ``lightning_gp.experiments`` whose ``main(words)`` runs it; or module:function."""


def main(args: Sequence[str]) -> None:
    """Runs the experiment that ``args`` starts with; the rest are its own options."""
    words = list(args)
    if not words or words[0] not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"reproduce {' '.join(words[:1])}: choose from {known}; --help behind it says more.")
    home, _, function = EXPERIMENTS[words[0]].partition(":")
    getattr(importlib.import_module(f"lightning_gp.experiments.{home}"), function or "main")(words[1:])
