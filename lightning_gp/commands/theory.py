"""``lightning-gp theory``: which pairs of rates converge, from eigenvalues of a Hessian, as a picture.

[T21] S. Takagi et al., 2021, Fig. 1; [T19] S. Takagi et al., 2019, Fig. 2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_gp.contracts import CurvatureKind
from lightning_gp.plots import canvas, draw_critical_rates, require_matplotlib, save_figure
from lightning_gp.runs.command import command
from lightning_gp.runs.folders import write_json
from lightning_gp.theory.learning_rates import critical_inner_lr, critical_outer_lr

POINTS = 200
TITLES = {
    "fomaml": "FOMAML; with S = 1 also L − α/2 ‖∇L‖²",
    "maml": "MAML",
    "positive_penalty": "L + α/2 ‖∇L‖²",
    "ascent": "MAML with an ascending inner loop",
    "first_order_ascent": "the same, first order",
}


def main(args: Sequence[str]) -> None:
    """Runs ``theory`` with the options that ``args`` spell."""
    command(theory, "lightning-gp theory", args)


def theory(
    eigenvalues: Sequence[float] = (),
    card: Path | None = None,
    kind: Sequence[CurvatureKind] = ("fomaml",),
    inner_steps: int = 1,
    output: Path = Path("runs/theory"),
) -> None:
    """Draws the critical outer rate over the inner rate, and writes the curves to ``theory.json``.

    Args:
        eigenvalues: the largest ones of a loss's Hessian.
        card: diagnose.json of `lightning-gp diagnose`, in place of eigenvalues.
        kind: effective curvature, a panel for each: fomaml, maml, positive_penalty, ascent, first_order_ascent.
        inner_steps: S.
        output: folder.

    Raises:
        ValueError: if there are no eigenvalues, or none is positive.
        FileNotFoundError: if there is no such card.
    """
    require_matplotlib()
    values = torch.tensor(list(eigenvalues) or _of_card(card), dtype=torch.float64).sort(descending=True)[0]
    if not bool((values > 0).any()):
        raise ValueError(f"eigenvalues {values.tolist()}: none is positive, so nothing bounds the rates.")
    values = values[values > 0]
    critical = float(critical_inner_lr(values))
    alphas = torch.linspace(0, 1.5 * critical, POINTS, dtype=torch.float64)
    figure, panels = canvas(len(kind))
    written = {}
    for axes, each in zip(panels, kind, strict=True):
        curves = {
            f"λ_{i} = {float(value):.3g}": critical_outer_lr(value.expand(POINTS, 1), alphas, each, inner_steps)
            for i, value in enumerate(values, start=1)
        }
        safe = critical_outer_lr(values.expand(POINTS, -1), alphas, each, inner_steps, complete=False)
        bounded = each == "fomaml" and inner_steps % 2 == 1  # the others keep their minimum
        draw_critical_rates(axes, alphas, curves, safe, critical if bounded else None)
        axes.set(title=TITLES[each], xlabel="weight of the penalty α" if each == "positive_penalty" else "inner rate α")
        lists = {name: curve.tolist() for name, curve in {**curves, "safe": safe}.items()}
        written[each] = {"inner_critical": critical if bounded else None, **lists}
    numbers = output / "theory.json"
    spelled = f"--eigenvalues {' '.join(f'{value:g}' for value in values.tolist())} --kind {' '.join(kind)}"
    spelled = f"lightning-gp theory {spelled} --inner_steps {inner_steps}"
    write_json(numbers, {"command": spelled, "inner_rates": alphas.tolist(), "kinds": written})
    (picture,) = save_figure(figure, numbers)
    print(f"1/λ_1 = {critical:.4g}   β_c(0) = 2/λ_1 = {2 * critical:.4g}", flush=True)
    print(f"Picture: {picture}   Numbers: {numbers}", flush=True)


def _of_card(path: Path | None) -> list[float]:
    if path is None:
        raise ValueError("Give --eigenvalues 4.0 1.0, or the diagnose.json of `lightning-gp diagnose` as --card.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {path}; `lightning-gp diagnose --config FILE.yaml` writes one.")
    values = json.loads(path.read_text("utf-8")).get("values", {})
    named = {key: value for key, value in values.items() if key.startswith("curvature/eigenvalue_")}
    found = [value for _, value in sorted(named.items()) if value is not None]
    if not found:
        raise ValueError(f"{path} holds no eigenvalues; it should be the diagnose.json of `lightning-gp diagnose`.")
    return found
