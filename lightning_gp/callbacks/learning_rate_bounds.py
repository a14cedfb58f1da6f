"""``LearningRateBounds``: how far the learning rates are from where training stops to converge.

Sources: S. Takagi et al., "Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective", 2021 [T21], Eq. 18, 26, 31.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer, callbacks_of
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.hessian_eigenvalues import HessianEigenvalues
from lightning_gp.callbacks.measurement import Report
from lightning_gp.contracts import Adapts, Key, Varies
from lightning_gp.theory.learning_rates import KINDS, Kind, critical_inner_lr, critical_outer_lr


class LearningRateBounds(Probe):
    """How far the rates are from the critical inner rate α_c = 1/λ_max and outer rate β_c(α) = min_i 2/c(λ_i).

    The eigenvalues λ_i are those of a ``HessianEigenvalues(objective="loss")`` of the same Trainer; nothing is computed
    again, and it measures when that does. c is the effective curvature of ``theory.critical_outer_lr``.
    Negative eigenvalues are left out of account, as in [T21].

    α and c are read off the module:

    | module | α | c |
    |---|---|---|
    | ``rate()`` of a known ``kind`` (MAML, gradient penalties) | the largest, times ``factor`` | of that ``kind`` |
    | any other | 0 | λ |

    {keys}

    The bounds hold for plain gradient descent near a minimum, with every parameter adapted at one rate: for momentum,
    Adam, ANIL, BOIL and rates per parameter they are a guide. A warning, once for each rate, says that α exceeds α_c
    (not under a positive penalty, which has no such bound) or that β of plain SGD exceeds β_c.

    Cost: none beyond that of ``HessianEigenvalues``.

    Args:
        inner_lr: α, in place of the module's.
        kind: ``"fomaml"``, ``"maml"`` or ``"positive_penalty"``, in place of the module's.
        inner_steps: S, in place of the module's.
        prefix: put in front of every key; that of the ``HessianEigenvalues`` to use.

    Raises:
        ValueError: if an argument is out of range; in ``setup``, if there is no such ``HessianEigenvalues``.
    """

    keys = (
        Key("learning_rates/outer", "[0, ∞)", "β: largest rate of the optimizers' parameter groups"),
        Key("learning_rates/outer_critical", "[0, ∞]", "β_c(α)"),
        Key("learning_rates/outer_ratio", "[0, ∞]", "β / β_c; above 1 plain gradient descent diverges"),
        Key("learning_rates/inner", "[0, ∞)", "α, where there is one"),
        Key("learning_rates/inner_critical", "(0, ∞]", "α_c"),
        Key("learning_rates/inner_ratio", "[0, ∞)", "α / α_c, where there is an α"),
    )

    def __init__(
        self,
        inner_lr: float | None = None,
        kind: Kind | None = None,
        inner_steps: int | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(prefix=prefix)
        checks.optional_number(minimum=0, inner_lr=inner_lr)
        checks.choice((*KINDS, None), kind=kind)
        checks.optional_whole(1, inner_steps=inner_steps)
        self.inner_lr, self.kind, self.inner_steps = inner_lr, kind, inner_steps

    def begin(self) -> None:
        """Also forgets where the eigenvalues are."""
        super().begin()
        self._source: HessianEigenvalues | None = None
        self._warned: set[str] = set()

    def needs_loss(self, pl_module: LightningModule) -> bool:
        """The eigenvalues are there already."""
        return False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the eigenvalues."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        sources = [
            callback
            for callback in callbacks_of(trainer)
            if isinstance(callback, HessianEigenvalues)
            and (callback.objective, callback.prefix) == ("loss", self.prefix)
        ]
        if not sources:
            raise ValueError(
                "LearningRateBounds takes the eigenvalues of a HessianEigenvalues callback, and the Trainer has none "
                f"with objective='loss' and prefix={self.prefix!r}. Attach one: "
                "Trainer(callbacks=[HessianEigenvalues(k=2), LearningRateBounds()])."
            )
        if self.inner_lr is None and isinstance(pl_module, Adapts) and pl_module.inner_loop().optimizer is not None:
            raise ValueError(
                f"{type(pl_module).__name__} adapts with an inner_optimizer, for which there is no theory. Give "
                "LearningRateBounds(inner_lr=...) the rate of gradient descent that comes closest, or remove it."
            )
        self._source = sources[0]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Measures when the eigenvalues are measured."""
        assert self._source is not None
        self._source.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._follow(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures when the eigenvalues are measured."""
        assert self._source is not None
        self._source.on_train_epoch_end(trainer, pl_module)
        self._follow(trainer, pl_module)

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Whichever of the two callbacks comes first in the Trainer, the eigenvalues are fresh, and computed once.
        assert self._source is not None
        if self._source.eigenvalues is not None and self._source.just_measured(trainer):
            self.every_n_steps = self._source.every_n_steps
            self.run(trainer, pl_module)

    def report_without_probe(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """The bounds from the eigenvalues."""
        assert self._source is not None
        assert self._source.eigenvalues is not None
        eigenvalues = self._source.eigenvalues.clamp(min=0)
        alpha, kind, steps = self._inner(pl_module)
        outer = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        inner_critical = float(critical_inner_lr(eigenvalues))
        outer_critical = float(critical_outer_lr(eigenvalues, alpha or 0.0, kind, steps))
        report = Report(
            {
                "learning_rates/outer": float(outer),
                "learning_rates/outer_critical": outer_critical,
                "learning_rates/outer_ratio": _ratio(outer, outer_critical),
                "learning_rates/inner_critical": inner_critical,
            }
        )
        if alpha is not None:
            report.values["learning_rates/inner"] = alpha
            report.values["learning_rates/inner_ratio"] = _ratio(alpha, inner_critical)
        self._warn(report.values, kind, trainer.optimizers)
        return report

    def _inner(self, module: LightningModule) -> tuple[float | None, Kind, int]:
        """α, the kind of effective curvature, and S."""
        alpha: float | None = None
        kind: Kind | None = None
        steps = 1
        if isinstance(module, Adapts):
            loop = module.inner_loop()
            kind, steps = "fomaml" if loop.first_order else "maml", loop.steps
        if isinstance(module, Varies) and self.inner_lr is None:
            rate = module.rate()
            kind = rate.kind
            alpha = None if kind is None else rate.factor * max(rate.get())
        elif isinstance(module, Varies) and kind is None:
            kind = module.rate().kind
        alpha = alpha if self.inner_lr is None else self.inner_lr
        kind = self.kind or kind or "fomaml"
        return alpha, kind, 1 if kind == "positive_penalty" else self.inner_steps or steps

    def _warn(self, values: dict[str, float], kind: Kind, optimizers: list[Any]) -> None:
        plain = all(type(each) is torch.optim.SGD and not each.defaults["momentum"] for each in optimizers)
        checks = {"inner": kind != "positive_penalty", "outer": plain}
        for rate, applies in checks.items():
            if applies and values.get(f"learning_rates/{rate}_ratio", 0.0) > 1 and rate not in self._warned:
                self._warned.add(rate)
                warnings.warn(
                    f"The {rate} learning rate {values[f'learning_rates/{rate}']:.3g} exceeds its critical value "
                    f"{values[f'learning_rates/{rate}_critical']:.3g} (from the largest Hessian eigenvalues): by the "
                    "linearised theory gradient descent does not converge. This is said once; see the "
                    f"{self.prefix}learning_rates/ values.",
                    stacklevel=2,
                )


def _ratio(rate: float, critical: float) -> float:
    return float(torch.tensor(float(rate), dtype=torch.float64) / critical)  # ∞ where the critical rate is 0
