"""Trainability maps with Adam outside: the effect of the inner rate is gone [T19, Fig. 6].

    lightning-gp reproduce adam
    lightning-gp reproduce adam --omniglot data

The sinusoid map (``maps_sin``), and with ``--omniglot`` that of Omniglot (``maps_omn``), with Adam in place of gradient
descent in the outer loop. Adam divides the gradient by its size, so that its steps do not grow with the curvature, and
rates that are too large do not end in infinities: a rate counts as usable if it lowers the loss.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gp.experiments.maps import Finding, borders, computed, largest, parser_of, write
from lightning_gp.experiments.maps_omn import omniglot_map
from lightning_gp.experiments.maps_sin import sinusoid_map
from lightning_gp.trainability.result import TrainabilityResult

PAPER = "with Adam, the maximum β is not larger near the largest α than at α = 0"


def gone(result: TrainabilityResult) -> Finding:
    """Whether the largest usable β is that of α = 0, up to two steps of the grid."""
    beta, alpha, zero = largest(result, "worse")
    step = float((result.outer_lrs[1:] / result.outer_lrs[:-1]).min())
    found = (
        f"the largest β that lowers the loss is {zero:.3g} at α = 0 and {beta:.3g} at best, at α = {alpha:.3g} "
        f"({beta / zero if zero else float('inf'):.2f} times; neighbouring rates differ {step:.2f} times)"
    )
    return Finding(PAPER, found, beta <= zero * step**2 * 1.001)


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("adam", "Trainability maps with Adam in the outer loop.", "runs/adam")
    parser.add_argument("--compile", action="store_true", help="compile the sinusoid step")
    parser.add_argument("--omniglot", metavar="ROOT", help="also Omniglot, from this folder; wants a GPU, or --quick")
    options = parser.parse_args(args)
    maps = {"sinusoid": sinusoid_map(options.quick, "adam", options.compile, options.device)}
    if options.omniglot is not None:
        maps["omniglot"] = omniglot_map(options.omniglot, options.quick, "adam", options.device)
    results = {name: computed(trainability, options, f"adam-{name}") for name, trainability in maps.items()}
    if all(result.complete for result in results.values()):
        findings = [gone(result) for result in results.values()]
        numbers = {name: borders(result, "worse") for name, result in results.items()}
        titled = {f"{name.capitalize()}, MAML, Adam outside": result for name, result in results.items()}
        write("adam", options, titled, findings, {"borders": numbers})
