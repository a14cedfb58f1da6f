"""What ``diagnose`` found, as text, numbers and picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_gp.diagnosis.advice import EDGE, advice
from lightning_gp.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = (
    ("learning_rates/outer", "outer rate β in use"),
    ("learning_rates/outer_critical", "largest β that converges"),
    ("learning_rates/edge", "distance to the edge, β / β_c"),
    ("learning_rates/curvature", "curvature that decides"),
    ("learning_rates/inner", "inner rate α in use"),
    ("learning_rates/inner_critical", "1/λ_max of the sharpest environment"),
    ("learning_rates/inner_ratio", "α λ_max"),
    ("gradients/norm", "gradient norm"),
    ("gradients/cosine", "mean cosine between environments"),
    ("gradients/cosine_min", "smallest cosine"),
    ("curvature/eigenvalue_1", "largest Hessian eigenvalue"),
    ("curvature/residual_1", "its residual"),
    ("curvature/eigenvalue_2", "second Hessian eigenvalue"),
    ("curvature/residual_2", "its residual"),
    ("linearity/phase_consistency", "phase consistency (1: straight)"),
    ("linearity/amplitude_consistency", "amplitude consistency (1: even)"),
    ("linearity/linearisation_error", "what the linearised network misses (0: linear)"),
    ("linearity/noise", "noise of the inner step (2: no descent)"),
    ("linearity/loss_gradient_ratio", "support gradient left after the inner steps"),
)


@dataclass(frozen=True)
class Card:
    """Gradients, curvature and learning rates of a module at its present weights.

    ``print(card)`` shows it; a notebook shows it by itself.

    Attributes:
        module: name of its class.
        optimizer: name of the optimizer's class.
        parameters: number of trainable parameters.
        values: everything measured, by the callbacks' keys.
        missing: what could not be measured, and why, by callback.
        seconds: that it took.
    """

    module: str
    optimizer: str
    parameters: int
    values: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def advice(self) -> list[str]:
        """What to change, the most urgent first."""
        return advice(self.values)

    def __str__(self) -> str:
        """The card in words."""
        named = [(label, self.values[key]) for key, label in ROWS if key in self.values]
        known = {key for key, _ in ROWS}
        others = [(key, value) for key, value in sorted(self.values.items()) if key not in known]
        width = max((len(label) for label, _ in [*named, *others]), default=0)
        lines = [f"{self.module}, {self.parameters:,} parameters, {self.optimizer} ({self.seconds:.1f} s)", ""]
        lines += [f"  {label:<{width}}  {value:.4g}" for label, value in named]
        lines += ["", *(f"  {label:<{width}}  {value:.4g}" for label, value in others)] if others else []
        lines += ["", *(f"* {sentence}" for sentence in self.advice)]
        lines += [f"- {name} was not measured: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: numbers that are not finite become None."""
        finite = {key: value if math.isfinite(value) else None for key, value in self.values.items()}
        return {
            "module": self.module,
            "optimizer": self.optimizer,
            "parameters": self.parameters,
            "values": finite,
            "missing": self.missing,
            "advice": self.advice,
            "seconds": round(self.seconds, 2),
        }

    def plot(self) -> Figure:
        """Three panels: the rates against their critical values, curvature, gradients.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        figure, panels = canvas(3, 1, 4.2, 3.4)
        _rates(panels[0], self.values)
        keys = sorted(key for key in self.values if key.startswith("curvature/eigenvalue_"))
        _bars(panels[1], {key.partition("_")[2]: self.values[key] for key in keys}, "Hessian eigenvalues λ_i")
        shown = {"norm": "gradients/norm", "cosine": "gradients/cosine", "smallest cosine": "gradients/cosine_min"}
        _bars(panels[2], {label: self.values[key] for label, key in shown.items() if key in self.values}, "gradients")
        figure.suptitle(f"{self.module}, {self.optimizer}")
        return figure


def _rates(axes: Axes, values: dict[str, float]) -> None:
    """Rates as shares of their critical values, on a logarithmic axis with the edge at 1."""
    ratios = {"outer": "learning_rates/edge", "inner": "learning_rates/inner_ratio"}
    shown = {name: values[key] for name, key in ratios.items() if 0 < values.get(key, math.nan) < math.inf}
    colors = ["tab:red" if value > EDGE else "tab:green" for value in shown.values()]
    axes.barh(list(shown), list(shown.values()), color=colors, height=0.5)
    for i, value in enumerate(shown.values()):
        axes.text(value, i, f" {value:.2g}", va="center")
    axes.axvline(1, color="black", linestyle="--")
    axes.set_xscale("log")
    low, high = min([0.1, *shown.values()]), max([2.0, *shown.values()])
    axes.set_xlim(low / 2, high * 3)
    axes.set_title("rate / critical rate (1: the edge)")


def _bars(axes: Axes, values: dict[str, float], title: str) -> None:
    finite = {label: value for label, value in values.items() if math.isfinite(value)}
    bars = axes.bar(list(finite), list(finite.values()), color="tab:blue")
    axes.bar_label(bars, [f"{value:.3g}" for value in finite.values()])
    axes.margins(y=0.2)
    axes.set_title(title)
