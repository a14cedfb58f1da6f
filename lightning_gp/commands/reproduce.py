"""``lightning-gp reproduce``: a figure or table of the papers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

EXPERIMENTS = {"colored-mnist": "colored_mnist", "gradient-norms": "gradient_norms"}
"""Name on the command line → module of ``lightning_gp.experiments`` whose ``main(words)`` runs it."""


def main(args: Sequence[str]) -> None:
    """Runs the experiment that ``args`` starts with; the rest are its own options."""
    words = list(args)
    if not words or words[0] not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"reproduce {' '.join(words[:1])}: choose from {known}; --help behind it says more.")
    importlib.import_module(f"lightning_gp.experiments.{EXPERIMENTS[words[0]]}").main(words[1:])
