"""``GradientNorm``: how long the gradient is."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.episodes import EpisodeProbe
from lightning_gp.callbacks.groups import Grouping, check_groups, grouped, parameters_by_name
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.shards import Parts, as_stack, joined
from lightning_gp.contracts import Key, MeasuresEnvironments
from lightning_gp.functional.gradients import gradient_norm
from lightning_gp.plots import histogram as draw_histogram
from lightning_gp.plots import require_matplotlib
from lightning_gp.types import Split


class GradientNorm(EpisodeProbe):
    """The norm of the gradient: of each environment, then averaged; for any other module that of the training step.

    - Modules with ``environment_losses`` (or a ``loss_fn`` of one loss per environment): mean_τ ‖∇L_τ(θ)‖ on the query
      sets at the unadapted parameters (S. Takagi et al., 2021, section IX-B).
    - Any other module: the global norm of the gradient that the optimizer gets, before clipping, averaged over the
      epoch's optimizer steps (with ``every_n_steps``: over the steps since the last value). Nothing is run again.
    - A ``loss_fn`` that returns a scalar: the norm of its gradient on the probe batch.

    {keys}

    With ``episodes=N`` also of N episodes in ``trainer.validate`` and ``trainer.test`` (S. Takagi et al., 2021, Fig. 4,
    with 992 and 100 of them), of whatever module: see ``EpisodeProbe``.

    Cost: one forward and backward pass of the probe batch per epoch; at the training step one pass over the gradients
    per step; in evaluation one forward and backward pass per episode.

    Args:
        at: ``"probe"``, ``"step"`` (any module, also with manual optimization), or ``"auto"`` as above.
        groups: number of leading parts of a parameter's name that make its group (1: the outermost submodules), or a
            function from names to groups; None for no groups.
        histogram: draw the norms' histogram once per epoch of training.
        split: ``"query"`` or ``"support"``, the sets whose loss is differentiated; the query set is the test data of
            S. Takagi et al., 2019, Fig. 1, the support set its training data.
        **kwargs: see ``EpisodeProbe`` and ``Probe``.

    Raises:
        ValueError: if ``at``, ``groups`` or ``split`` is not one of these, or does not go with the others.
    """

    keys = (
        Key("gradients/norm", "[0, ∞)", "see above"),
        Key("gradients/norm/<group>", "[0, ∞)", "the same for a group of parameters, with ``groups``"),
        Key("gradients/norm_<i>", "[0, ∞)", "of optimizer i, in place of ``gradients/norm``, where there are several"),
        Key("gradients/norm_histogram", "", "picture, with ``histogram=True``: over environments, or steps"),
    )

    def __init__(
        self,
        at: Literal["auto", "probe", "step"] = "auto",
        groups: Grouping | None = None,
        histogram: bool = False,
        split: Split = "query",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.choice(("auto", "probe", "step"), at=at)
        check_groups(groups)
        checks.choice(("query", "support"), split=split)
        if at == "step" and (split != "query" or self.episodes is not None):
            raise ValueError(
                "at='step' takes the gradients that training leaves in .grad: it knows no split, and no episodes in "
                "evaluation. Leave at='auto', or leave split and episodes out."
            )
        if histogram:
            require_matplotlib()
        self.at, self.groups, self.histogram, self.split = at, groups, histogram, split

    def begin(self) -> None:
        """Also forgets norms of steps."""
        super().begin()
        self._window: dict[str, list[Tensor]] = {}

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """It needs nothing but gradients."""
        return True

    def needs_loss(self, pl_module: LightningModule) -> bool:
        """Only where the norm is not taken from the training step."""
        if self.at == "auto":
            return self.loss_fn is not None or isinstance(pl_module, MeasuresEnvironments)
        return self.at == "probe"

    def measure(self, measurement: Measurement) -> Report:
        """Norms on the probe batch."""
        found: dict[str, list[Tensor]] = {}
        for gradients in measurement.gradients(self.split):
            for key, norm in self._norms(gradients).items():
                found.setdefault(key, []).append(norm)
        return self._report({key: torch.cat(norms) for key, norms in found.items()}, measurement)

    def _norms(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The norm (E,) of a stack (E, *shape) and of each of its groups."""
        # Norms of norms: every gradient is read once, however many groups there are.
        each = {name: gradient_norm({name: gradient}).unsqueeze(1) for name, gradient in gradients.items()}
        norms = {"gradients/norm": gradient_norm(each)}
        for group, names in grouped(gradients, self.groups).items():
            norms[f"gradients/norm/{group}"] = gradient_norm({name: each[name] for name in names})
        return joined(norms) if isinstance(gradients, Parts) else norms

    def _report(self, norms: dict[str, Tensor], measurement: Measurement) -> Report:
        report = Report({key: measurement.mean_over_environments(each) for key, each in norms.items()})
        if self.histogram:
            everyone = measurement.all_environments(norms["gradients/norm"]).cpu()
            report.pictures["gradients/norm_histogram"] = lambda: draw_histogram(
                everyone, "gradient norm of an environment"
            )
        return report

    # -- at the training step -----------------------------------------------------------------------------------

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """Notes the norms."""
        super().on_step(trainer, pl_module, optimizer, position)
        if self.loss is not None:
            return
        key = f"gradients/norm_{position}" if len(trainer.optimizers) > 1 else "gradients/norm"
        gradients = {
            name: parameter.grad
            for name, parameter in parameters_by_name(optimizer, pl_module).items()
            if parameter.grad is not None
        }
        if gradients:
            for suffix, norm in self._norms(as_stack(gradients)).items():
                self._window.setdefault(suffix.replace("gradients/norm", key, 1), []).append(norm)

    def state_dict(self) -> dict[str, Any]:
        """The probe batch, and the norms since the last value."""
        return {
            **super().state_dict(),
            "window": {key: torch.cat([each.cpu() for each in norms]) for key, norms in self._window.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        super().load_state_dict(state_dict)
        self._window = {key: [norms] for key, norms in state_dict.get("window", {}).items()}

    def report_without_probe(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """Mean over the steps since the last report."""
        norms = {key: torch.cat([each.cpu() for each in steps]) for key, steps in self._window.items()}
        self._window = {}
        report = Report({key: float(each.double().mean()) for key, each in norms.items()})
        if self.histogram:
            for key, each in norms.items():
                if "/" not in key.removeprefix("gradients/"):
                    report.pictures[f"{key}_histogram"] = partial(draw_histogram, each, "gradient norm of a step")
        return report
