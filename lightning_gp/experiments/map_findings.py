"""What maps say of the papers' claims, in words and in numbers.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_gp.experiments.border_tests import FEWEST, NearTheEnd, near_the_end, steep_part
from lightning_gp.experiments.maps import Finding, finite, shown, spread
from lightning_gp.trainability.refining import Criterion
from lightning_gp.trainability.result import TrainabilityResult

GONE = "with Adam, the maximum β is not larger near the largest α than at α = 0"
DECREASES = "the maximum β quickly decreases with increasing α"


def larger_near_the_end(
    result: TrainabilityResult, paper: str, criterion: Criterion = "diverged"
) -> tuple[Finding, dict[str, Any]]:
    """[T21, section IX-D]: near the largest usable α, a larger β can be used than at α = 0; see ``near_the_end``.

    Returns:
        The finding, and the test's numbers for JSON.
    """
    test = near_the_end(result, criterion)
    return Finding(paper, in_words(test, result, criterion), test.holds), as_numbers(test)


def in_words(test: NearTheEnd, result: TrainabilityResult, criterion: Criterion) -> str:
    """What the test found, in a sentence or two."""
    what = "training diverges above" if criterion == "diverged" else "the loss gets lower up to"
    count = len(result.header["seeds"])
    zero = shown(result.seed_borders(0.0, criterion))
    text = (
        f"over {count} seed{'s' if count > 1 else ''} {what} β = {zero} at α = 0; "
        f"the largest α with any β that trains is {test.last:.3g}"
    )
    if test.against_zero is None or test.against_small is None:
        return f"{text}; the grid has no other α near it"
    at = ", ".join(f"{alpha:.3g}" for alpha in sorted(set(test.chosen)))
    text += (
        f"; near it, at α = {at}, β can be {test.against_zero} as large as at α = 0 and {test.against_small} as large "
        f"as at α up to {test.small[-1]:.3g}"
    )
    return text if test.holds is not None else f"{text}; a test needs {FEWEST} seeds"


def as_numbers(test: NearTheEnd) -> dict[str, Any]:
    """The test for JSON."""
    compared = {"over_alpha_zero": test.against_zero, "over_small_alpha": test.against_small}
    return {
        "last_usable_alpha": finite(test.last),
        "near": list(test.near),
        "small": list(test.small),
        "chosen_by_the_other_seeds": list(test.chosen),
        **{name: None if each is None else {**spread(each.ratios), "p": each.p} for name, each in compared.items()},
        "holds": test.holds,
    }


def gone(result: TrainabilityResult) -> tuple[Finding, dict[str, Any]]:
    """Whether the border of lower losses is no larger near the largest usable α than at α = 0: the test of ``sin``.

    It is gone where the test does not find it, and the median over seeds is no larger by more than a step of the grid.
    """
    test = near_the_end(result, "worse")
    step = float((result.outer_lrs[1:] / result.outer_lrs[:-1]).max()) * (1 + 1e-9)
    middle = None if test.against_zero is None else spread(test.against_zero.ratios)["median"]
    agrees = None if test.holds is None or middle is None else not test.holds and middle <= step
    return Finding(GONE, in_words(test, result, "worse"), agrees), as_numbers(test)


def fallen(
    result: TrainabilityResult, paper: str = DECREASES, criterion: Criterion = "worse"
) -> tuple[Finding, dict[str, Any]]:
    """How the border falls with α: its ends, and the exponent of its steep part (``steep_part``).

    It falls if its median does not rise from one α to the next in four of five steps, and is below a tenth at the end.
    """
    bottom, top = float(result.outer_lrs[0]), float(result.outer_lrs[-1])
    raw = np.array([result.seed_borders(alpha, criterion) for alpha in result.inner_lrs])  # (A, seeds)
    middle = np.median(raw, axis=1)
    inside = np.clip(middle, bottom, top)
    falling = bool((np.diff(inside) <= 1e-12).mean() >= 0.8 and inside[-1] < inside[0] / 10)
    fall = steep_part(result.inner_lrs, middle, result.outer_lrs)
    some = (middle > bottom) & (middle < top)
    mixed = float(np.polyfit(np.log(result.inner_lrs[some]), np.log(middle[some]), 1)[0]) if some.sum() > 1 else np.nan
    each = [steep_part(result.inner_lrs, column, result.outer_lrs).exponent for column in raw.T]
    known = [exponent for exponent in each if exponent == exponent]
    steep = (
        f"below half of {fall.level:.3g}, for α = {fall.alphas[0]:.3g} to {fall.alphas[-1]:.3g}, it falls like "
        f"α^{fall.exponent:.2f}{f' ({min(known):.2f} to {max(known):.2f} over seeds)' if len(known) > 1 else ''}; "
        f"the theory's form has α^{fall.expected:.2f} there, and α^-1 far beyond"
        if fall.exponent == fall.exponent
        else "too few α are below half of that for an exponent"
    )
    zero = shown(result.seed_borders(0.0, criterion))
    found = (
        f"the largest β that {'lowers the loss' if criterion == 'worse' else 'does not diverge'} is {zero} at α = 0, "
        f"{shown(raw[0])} at α = {result.inner_lrs[0]:.3g} and {shown(raw[-1])} at α = {result.inner_lrs[-1]:.3g}; "
        f"{steep}"
    )
    numbers = {
        "rule": "least squares in logarithms where the median border is below half its median of the first decade of α",
        "level": fall.level,
        "alphas": list(fall.alphas),
        "exponent": finite(fall.exponent),
        "exponent_by_seed": [finite(exponent) for exponent in each],
        "exponent_with_the_flat_part": finite(mixed),
        "exponent_of_the_theorys_form_there": finite(fall.expected),
    }
    return Finding(paper, found, falling), numbers
