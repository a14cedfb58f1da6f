"""``LearningRateBounds``: how far the learning rates are from where training stops to converge.

Sources:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective, Eq. 18.
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, Eq. 23.
    [C22] J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from torch import Tensor

from lightning_gp import checks
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.curvatures import check_coupled, couples, curvatures_by_environment, optimizer_of
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.probe_batch import saved_vector
from lightning_gp.contracts import Key
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.update_curvature import UpdateJacobian, leading_curvature
from lightning_gp.theory.inner_bounds import InnerBound, inner_bound
from lightning_gp.theory.optimizers import check_known, update_rule
from lightning_gp.types import Split

WARN_ABOVE = 1.05
"""Full-batch training hovers around 1 without harm."""


class LearningRateBounds(Probe):
    """The distance of the outer rate to the edge of stability, for any module and optimizer, and of the inner rate.

    **The edge.** Near a minimum a step of rate β converges if every curvature of P^{-1/2}(J + W)P^{-1/2} is below what
    the optimizer allows: 2/β for gradient descent, 3.8/β with momentum 0.9, 38/β for Adam (``theory.optimizers``).
    J is the Jacobian of the update that *this module* makes on the probe batch: the Hessian of its training objective,
    adapted, with penalties at their present weights, third derivatives and all; for first-order algorithms, whose
    update is no gradient, its own Jacobian, which is not symmetric. P is read from the optimizer's state, W is coupled
    weight decay. ``learning_rates/edge`` is the rate in use over the critical one:

    - far below 1 there is room: a larger rate would still converge;
    - at 1 the step neither shrinks nor grows along the sharpest direction. **Training of a network with full batches
      climbs to 1 and stays near it, and is none the worse**; with small batches it stays below;
    - well above 1 a step overshoots by more than it corrects: the loss oscillates and grows until training diverges or
      is thrown to a flatter place.

    **The inner rate**, for modules with an inner loop or a negative penalty: α_c = 1/λ_max over the environments'
    support losses by the adapted parameters (query losses for a penalty). Beyond it FOMAML with an odd number of steps
    and the negative penalty lose their minimum [T21, Eq. 18; T19, Eq. 23], and a warning says so. MAML with its second
    derivatives, and an even number of first-order steps, keep it at any α: for them it is a scale, and nothing warns.

    {keys}

    Negative curvatures are left out of account, as in [T21]. The bound is local: it holds at these weights, for these
    second moments, on this batch. Gradient clipping is not seen.

    Cost: 10 to 20 products with J, each as long as two backward passes of the training objective on the probe batch
    (8 environments), and for the inner rate as many on each environment's support loss.

    Args:
        optimizer: which of the Trainer's optimizers minimises the loss that is measured, where there are several.
        tol: relative error allowed in a curvature.
        max_products: products allowed for the edge; None for the default.
        **kwargs: see ``Probe``.

    Raises:
        ValueError: if an argument is out of range; before the first optimizer step, if the step of the optimizer is not
            known to ``theory.optimizers``, there are several and none is named, or the objective cannot be put together
            from the probe batch.
        RuntimeError: before the first optimizer step, if an operation in the loss has no double backward.
    """

    keys = (
        Key("learning_rates/outer", "[0, ∞)", "β: largest rate of the optimizer's parameter groups"),
        Key("learning_rates/outer_critical", "(0, ∞]", "β_c: the largest β that converges, other groups in proportion"),
        Key("learning_rates/edge", "[0, ∞)", "β / β_c: 1 is the edge, see above"),
        Key("learning_rates/curvature", "(−∞, ∞)", "the curvature that decides, of P^{-1/2}(J + W)P^{-1/2}"),
        Key("learning_rates/residual", "[0, ∞)", "of its eigenvector"),
        Key("learning_rates/converged", "{0, 1}", "1 where the curvature is as good as ``tol`` asks, else 0"),
        Key("learning_rates/inner", "[0, ∞)", "α, where there is one"),
        Key(
            "learning_rates/inner_critical",
            "(0, ∞]",
            "α_c, where something bounds α: not for an ascent or a positive penalty",
        ),
        Key("learning_rates/inner_ratio", "[0, ∞)", "α / α_c"),
    )

    keeps_graph = True

    def __init__(
        self, optimizer: int | None = None, tol: float = 1e-2, max_products: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        checks.optional_whole(0, optimizer=optimizer)
        checks.optional_whole(1, max_products=max_products)
        checks.number(minimum=0, tol=tol)
        if not 0 < tol < 1:
            raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 1e-2.")
        self.optimizer, self.tol, self.max_products = optimizer, tol, max_products

    def begin(self) -> None:
        """Also forgets the last search."""
        super().begin()
        self._start: Tensor | None = None
        self._warned: set[str] = set()

    def whole_batches(self, loss: AnyLoss) -> bool:
        """A coupled objective is that of a whole batch."""
        return couples(loss)

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One product, and the optimizer."""
        check_known(optimizer_of(loss.module, self.optimizer))
        check_coupled(loss, self.batch)
        with plain_kernels(second_order=True):
            jacobian = UpdateJacobian(lambda theta: loss.objectives(theta, piece).mean(), loss.parameters())
            jacobian(jacobian.update)

    def measure(self, measurement: Measurement) -> Report:
        """The edge, and the bound of the inner rate."""
        loss, ranks = measurement.loss, measurement.ranks
        parameters = loss.parameters()
        rule = update_rule(optimizer_of(loss.module, self.optimizer))
        if not rule.moves:
            return Report(dict.fromkeys(("learning_rates/outer_critical", "learning_rates/edge"), float("nan")))
        with plain_kernels(second_order=True):
            objective = partial(measurement.mean_loss, training=True)
            jacobian = UpdateJacobian(objective, parameters, reduce=ranks.sum)
            found = leading_curvature(
                jacobian,
                rule.root_scales(parameters).to(jacobian.update),
                rule.coupled_decay(parameters),
                rule.critical_rate,
                tol=self.tol,
                initial=self._start if self._start is not None and len(self._start) == jacobian.size else None,
                max_products=self.max_products,
            )
        del jacobian
        self._start = found.vector if found.vector is not None and bool(found.vector.isfinite().all()) else None
        finite = found.value == found.value
        report = Report(
            {
                "learning_rates/outer": rule.rate,
                "learning_rates/outer_critical": rule.critical_rate(found.value) if finite else float("nan"),
                "learning_rates/edge": rule.edge(found.value) if finite else float("nan"),
                "learning_rates/curvature": found.value.real,
                "learning_rates/residual": found.residual,
                "learning_rates/converged": float(found.converged),
            }
        )
        bound = inner_bound(loss.module) if isinstance(loss, EnvironmentLoss) else None
        if bound is not None:
            report.values["learning_rates/inner"] = bound.rate
            if bound.split is not None:
                report.values.update(self._inner(measurement, bound, bound.split))
        self._warn(report.values, bound)
        return report

    def _inner(self, measurement: Measurement, bound: InnerBound, split: Split) -> dict[str, float]:
        """α_c and the ratio, from the environments of all processes."""
        largest = curvatures_by_environment(measurement, split, self.tol, bound.names).max().clamp(min=0)
        return {
            "learning_rates/inner_critical": float(1 / largest),
            "learning_rates/inner_ratio": float(bound.rate * largest),
        }

    def _warn(self, values: dict[str, float], bound: InnerBound | None) -> None:
        edge = values["learning_rates/edge"]
        if edge > WARN_ABOVE and "edge" not in self._warned:
            self._warned.add("edge")
            warnings.warn(
                f"The learning rate {values['learning_rates/outer']:.3g} is {edge:.3g} times the critical rate "
                f"{values['learning_rates/outer_critical']:.3g} at these weights: steps overshoot along the sharpest "
                "direction, and the loss will oscillate or grow. A value around 1 is harmless, one that stays well "
                f"above is not. This is said once; see {self.prefix}learning_rates/edge.",
                stacklevel=2,
            )
        ratio = values.get("learning_rates/inner_ratio", 0.0)
        if bound is not None and bound.loses_minimum and ratio > 1 and "inner" not in self._warned:
            self._warned.add("inner")
            warnings.warn(
                f"The inner rate {values['learning_rates/inner']:.3g} exceeds 1/λ_max = "
                f"{values['learning_rates/inner_critical']:.3g} of an environment: there a first-order inner loop of "
                "an odd number of steps, or a negative penalty, drives the weights away from the minimum at any outer "
                f"rate. This is said once; see {self.prefix}learning_rates/inner_ratio.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The probe batch and the start of the next search."""
        return {**super().state_dict(), "start": saved_vector(self._start)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        super().load_state_dict(state_dict)
        self._start = state_dict.get("start")
