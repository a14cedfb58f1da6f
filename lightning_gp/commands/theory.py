"""``lightning-gp theory``: which pairs of rates converge, from eigenvalues of a Hessian, as a picture.

[T21] S. Takagi et al., 2021, Fig. 1; [T19] S. Takagi et al., 2019, Fig. 2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_gp.plots import critical_rates, require_matplotlib, save_figure
from lightning_gp.runs.folders import write_json
from lightning_gp.theory.learning_rates import KINDS, critical_inner_lr, critical_outer_lr

POINTS = 400


def main(args: Sequence[str]) -> None:
    """Draws ``theory.png``, and writes the curves to ``theory.json``.

    Args:
        args: words of the command line.

    Raises:
        ValueError: if there are no eigenvalues, or none is positive.
        FileNotFoundError: if there is no such card.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-gp theory",
        description="The critical outer rate over the inner rate, from the largest eigenvalues of a loss's Hessian.",
    )
    parser.add_argument("--eigenvalues", type=float, nargs="+", default=[], help="the largest ones")
    parser.add_argument("--card", type=Path, help="diagnose.json of `lightning-gp diagnose`, in place of eigenvalues")
    parser.add_argument("--kind", choices=KINDS, default="fomaml", help="effective curvature (default: %(default)s)")
    parser.add_argument("--inner_steps", type=int, default=1, help="inner steps S (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/theory"), help="folder (default: %(default)s)")
    options = parser.parse_args([word.replace("--inner-steps", "--inner_steps") for word in args])
    require_matplotlib()
    values = torch.tensor(options.eigenvalues or _of_card(options.card), dtype=torch.float64).sort(descending=True)[0]
    if not bool((values > 0).any()):
        raise ValueError(f"eigenvalues {values.tolist()}: none is positive, so nothing bounds the rates.")
    values = values[values > 0]
    critical = float(critical_inner_lr(values))
    alphas = torch.linspace(0, 1.5 * critical, POINTS, dtype=torch.float64)
    kind, steps = options.kind, options.inner_steps
    curves = {
        f"λ_{i} = {float(value):.3g}": critical_outer_lr(value.expand(POINTS, 1), alphas, kind, steps)
        for i, value in enumerate(values, start=1)
    }
    safe = critical_outer_lr(values.expand(POINTS, -1), alphas, kind, steps, complete=False)
    numbers = options.output / "theory.json"
    written = {name: curve.tolist() for name, curve in {**curves, "safe": safe}.items()}
    write_json(numbers, {"inner_rates": alphas.tolist(), "inner_critical": critical, "kind": kind, **written})
    (picture,) = save_figure(critical_rates(alphas, curves, safe, critical), numbers)
    print(f"α_c = 1/λ_1 = {critical:.4g}   β_c(0) = 2/λ_1 = {2 * critical:.4g}", flush=True)
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
