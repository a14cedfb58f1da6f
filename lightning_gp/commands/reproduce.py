"""``lightning-gp reproduce``: a figure or table of the papers."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_gp.runs.synopsis import help_of


class Experiment(NamedTuple):
    """Where an experiment is and what it shows.

    Attributes:
        home: module and function, or functions by name, of ``lightning_gp.experiments``; the command line is that of
            the function (``runs.command``).
        shows: one line.
        fixed: arguments of the function that are no options.
        also: other names of options.
        threads: whether it may use all of torch's threads; a step of a small network does not gain from them.
    """

    home: str
    shows: str
    fixed: Mapping[str, Any] = {}
    also: Mapping[str, str] = {}
    threads: bool = False


EXPERIMENTS = {
    "lin": Experiment("map_lin.lin", "which learning rates train linear regression, against the theory's borders"),
    "sin": Experiment("map_problems.sin", "the map of sinusoid regression with MAML"),
    "omn": Experiment("map_problems.omn", "the map of Omniglot classification with MAML"),
    "min": Experiment("map_problems.mini", "the map of mini-ImageNet classification with MAML"),
    "cmn": Experiment("map_problems.cmn", "the map of colored MNIST with IRMv1"),
    "adam": Experiment("map_problems.adam", "the maps with Adam outside, where the effect is gone"),
    "signed": Experiment("signed.signed", "inner ascent, ERM and MAML on one signed axis, beside the penalties"),
    "penalties": Experiment("penalties.penalties", "maps of both gradient penalties, on lines and sinusoids"),
    "tg": Experiment("tg.tg", "third derivative against squared Hessian on the way of training"),
    "aopt": Experiment("aopt.aopt", "the optimal adaptation rate: estimate against brute force"),
    "tuner": Experiment(
        "tuner.tuner",
        "the tuner's learning rates against the papers' hand-picked ones",
        also={"steps": "trial_iterations"},
    ),
    "colored-mnist": Experiment(
        "colored_mnist.colored_mnist",
        "IRM, ERM and the oracle with the IRM paper's settings",
        also={"data_dir": "root", "restarts": "seeds", "steps": "iterations"},
    ),
    "invariance": Experiment(
        "invariance.invariance",
        "every invariance algorithm on colored MNIST: the same search, three ways to select a model",
        also={"data_dir": "root", "steps": "iterations"},
    ),
    "gbml": Experiment(
        "gbml.gbml",
        "eight meta-learning algorithms: loss and accuracy against time and memory, on the same steps",
        also={"data_dir": "root", "steps": "iterations"},
    ),
    "gradient-norms": Experiment("gradient_norms.FIGURES", "the gradient norm under penalties of both signs"),
    "lil-curves": Experiment(
        "lil_curves.lil_curves", "MAML, MAML + LIL, ANIL and BOIL on Omniglot: linearity and accuracy"
    ),
    "lil-table1": Experiment(
        "lil_table1.lil_table1", "LIL paper, Table 1: a pre-trained initialisation against a random one"
    ),
    **{
        f"lil-table{number}": Experiment(
            "lil_tables.lil_table",
            f"LIL paper, Table {number}, cell by cell",
            fixed={"table": number},
            also={"data_dir": "root"},
            threads=True,
        )
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
    path, _, fixed, also, threads = EXPERIMENTS[words[0]]
    home, _, name = path.partition(".")
    if {"-h", "--help"} & {*words} and not (name.isupper() and words[1:2] != ["--help"]):
        print(help_of(f"experiments.{home}", name, f"lightning-gp reproduce {words[0]}", list(fixed)), end="")
        return
    from lightning_gp.allocator import keep_freed_memory
    from lightning_gp.runs.command import command
    from lightning_gp.trainability.executors import one_thread

    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", module=r".*_pytree")
    keep_freed_memory()
    function = getattr(importlib.import_module(f"lightning_gp.experiments.{home}"), name)
    with contextlib.nullcontext() if threads else one_thread():  # one, as the stated times are meant
        command(function, f"lightning-gp reproduce {words[0]}", words[1:], also, **fixed)
