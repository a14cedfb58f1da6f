"""``lightning-gp reproduce``: a figure or table of the papers."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from lightning_gp._lightning import NAMESPACE


class Experiment(NamedTuple):
    """Where an experiment is and what it shows.

    Attributes:
        home: module of ``lightning_gp.experiments`` whose ``main(words)`` runs it; or module:function.
        shows: one line.
    """

    home: str
    shows: str


EXPERIMENTS = {
    "lin": Experiment("maps_lin", "which learning rates train linear regression, against the theory's borders"),
    "sin": Experiment("maps_sin", "the map of sinusoid regression with MAML"),
    "omn": Experiment("maps_omn", "the map of Omniglot classification with MAML"),
    "min": Experiment("maps_min", "the map of mini-ImageNet classification with MAML"),
    "cmn": Experiment("maps_cmn", "the map of colored MNIST with IRMv1"),
    "adam": Experiment("maps_adam", "the maps with Adam outside, where the effect is gone"),
    "tg": Experiment("tg", "third derivative against squared Hessian on the way of training"),
    "aopt": Experiment("aopt", "the optimal adaptation rate: estimate against brute force"),
    "tuner": Experiment("tuner", "the tuner's learning rates against the papers' hand-picked ones"),
    "colored-mnist": Experiment("colored_mnist", "IRM, ERM and the oracle with the IRM paper's settings"),
    "gradient-norms": Experiment("gradient_norms", "the gradient norm under penalties of both signs"),
    "lil-curves": Experiment("lil_curves", "MAML against MAML + LIL on Omniglot: consistencies and accuracy"),
    "lil-table1": Experiment("lil_table1", "LIL paper, Table 1: a pre-trained initialisation against a random one"),
    **{
        f"lil-table{number}": Experiment(f"lil_tables:table{number}", f"LIL paper, Table {number}, cell by cell")
        for number in (2, 3, 4, 5)
    },
}


def main(args: Sequence[str]) -> None:
    """Runs the experiment that ``args`` starts with; the rest are its own options."""
    words = list(args)
    if words[:1] in (["--help"], ["-h"]):
        print("lightning-gp reproduce EXPERIMENT [options]; --help behind the experiment says more.\n")
        print("\n".join(f"  {name:15} {experiment.shows}" for name, experiment in EXPERIMENTS.items()))
        return
    if not words or words[0] not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"reproduce {' '.join(words[:1])}: choose from {known}; --help says what each shows.")
    # An experiment builds many Trainers and prints its own progress, which their remarks on the hardware would hide.
    logging.getLogger(f"{NAMESPACE}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", module=r".*_pytree")
    home, _, function = EXPERIMENTS[words[0]].home.partition(":")
    getattr(importlib.import_module(f"lightning_gp.experiments.{home}"), function or "main")(words[1:])
