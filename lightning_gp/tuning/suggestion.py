"""What ``LearningRateTuner`` found: rates to use, the trials behind them, and how to put them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_gp._lightning import LightningModule
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.plots import canvas
from lightning_gp.trainability.objective import rate_of
from lightning_gp.tuning.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Suggestion:
    """Learning rates to train with, and what they rest on.

    Attributes:
        inner_lr: the suggested α; None without an inner loop, as are all numbers about α.
        outer_lr: the suggested β.
        loss: of the trial with these.
        own: the module's own α and β, and the loss of its trial; None if it diverged.
        inner_trials: over α, by ascending rate, at the outer rate ``inner_trials_at``.
        inner_trials_at: see there.
        outer_trials: over β at the suggested α.
        largest_inner_lr: the largest α that was tried and did not diverge.
        critical_inner_lr: 1/λ_max, λ_max the largest curvature of the support loss of any environment measured, at the
            start; inf where none is positive, None where it could not be had.
        critical_outer_lr: β_c of the module's objective for SGD, with or without momentum, at the end of a trial; None
            for other optimizers, whose second moments are not kept.
        optimal_adaptation_lr: the estimate of ``theory.network_adaptation_lr`` at the start, or None if its kernel
            would be too large.
        iterations: outer steps of a trial.
        optimizer: name of the outer optimizer.
    """

    inner_lr: float | None
    outer_lr: float
    loss: float
    own: tuple[float | None, float, float | None]
    inner_trials: tuple[Trial, ...]
    inner_trials_at: float
    outer_trials: tuple[Trial, ...]
    largest_inner_lr: float | None
    critical_inner_lr: float | None
    critical_outer_lr: float | None
    optimal_adaptation_lr: float | None
    iterations: int
    optimizer: str

    def apply(self, module: LightningModule) -> None:
        """Sets both rates on a module; a scheduler then starts from the suggested β.

        Args:
            module: an ``EnvironmentModule`` whose outer optimizer is built by its ``optimizer``.

        Raises:
            ValueError: if the module builds its optimizer in some other way; nothing is changed then.
        """
        own = type(module).configure_optimizers is not EnvironmentModule.configure_optimizers
        if own or not isinstance(module, EnvironmentModule):
            inner = "" if self.inner_lr is None else f", and inner_lr={self.inner_lr:.4g} where the module is built"
            raise ValueError(
                f"{type(module).__name__} has a configure_optimizers of its own, which decides the outer rate: set "
                f"{self.outer_lr:.4g} there{inner}."
            )
        if self.inner_lr is not None:
            rate_of(module).set(self.inner_lr)
            if "inner_lr" in module.hparams:
                module.hparams["inner_lr"] = self.inner_lr
        module.learning_rate = self.outer_lr

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        values = asdict(self)
        for name in ("inner_trials", "outer_trials"):
            values[name] = [trial._asdict() for trial in getattr(self, name)]
        return values

    def report(self) -> str:
        """The suggestion in words, with what speaks for it."""
        own_loss = "diverged" if self.own[2] is None else f"loss {self.own[2]:.4g}"
        lines = [
            f"suggested:   {_inner(self.inner_lr)}outer rate {self.outer_lr:.4g}: loss {self.loss:.4g} "
            f"after {self.iterations} iterations",
            f"module's own: {_inner(self.own[0])}outer rate {self.own[1]:.4g}: {own_loss}",
        ]
        if self.largest_inner_lr is not None:
            lines.append(f"largest inner rate that did not diverge: {self.largest_inner_lr:.4g}")
        if self.critical_inner_lr is not None:
            lines.append(f"1/λ_max of the environments at the start: {self.critical_inner_lr:.4g}")
        if self.optimal_adaptation_lr is not None:
            lines.append(
                f"best single step from the initial weights (tangent kernel): {self.optimal_adaptation_lr:.4g}"
            )
        if self.critical_outer_lr is None:
            lines.append(
                f"no critical outer rate: {self.optimizer} has none here, or its second moments are not kept; the "
                "outer rate rests on trials alone"
            )
        else:
            lines.append(f"largest outer rate that converges, by curvature: {self.critical_outer_lr:.4g}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Loss over α and over β with the theory's lines; a trial that diverged is a cross on the upper edge.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        if self.inner_lr is None or self.own[0] is None:
            figure, (only,) = canvas(1)
            _draw(only, self.outer_trials, self.outer_lr, self.own[1], {"critical rate": self.critical_outer_lr})
            only.set(xlabel="outer rate β", title=self.optimizer)
            only.set_ylabel(f"training loss after {self.iterations} iterations")
            return figure
        figure, (left, right) = canvas(2)
        inner_lines = {"1/λ_max at the start": self.critical_inner_lr, "tangent kernel": self.optimal_adaptation_lr}
        _draw(left, self.inner_trials, self.inner_lr, self.own[0], inner_lines)
        left.set(xlabel="inner rate α", title=f"outer rate β = {self.inner_trials_at:.3g}")
        _draw(right, self.outer_trials, self.outer_lr, self.own[1], {"critical rate": self.critical_outer_lr})
        right.set(xlabel="outer rate β", title=f"inner rate α = {self.inner_lr:.3g}, {self.optimizer}")
        left.set_ylabel(f"training loss after {self.iterations} iterations")
        return figure


def _inner(rate: float | None) -> str:
    return "" if rate is None else f"inner rate {rate:.4g}, "


def _draw(axes: Axes, trials: Sequence[Trial], suggested: float, own: float, lines: dict[str, float | None]) -> None:
    usable = [(trial.rate, trial.loss) for trial in trials if trial.loss is not None]
    axes.plot(*zip(*usable, strict=True), color="tab:blue", marker="o", label="trials")
    axes.plot(*next(point for point in usable if point[0] == suggested), "*", ms=18, color="tab:red", label="suggested")
    failed = [trial.rate for trial in trials if trial.loss is None]
    if failed:
        top = axes.get_xaxis_transform()
        axes.plot(failed, [0.97] * len(failed), "kx", transform=top, label="diverged")
    axes.axvline(own, color="0.6", linestyle="-.", label="module's own")
    shown = [(name, value) for name, value in lines.items() if value is not None and 0 < value < float("inf")]
    for (name, value), style in zip(shown, ("--", ":"), strict=False):
        axes.axvline(value, color="black", linestyle=style, label=name)
    axes.set_xscale("log")
    axes.legend(fontsize=8)
