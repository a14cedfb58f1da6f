"""``PhaseAmplitudeConsistency``: how linear the inner loop is, and how straight the path of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.outer_path import OuterPath
from lightning_gp.callbacks.shards import reshard
from lightning_gp.contracts import Adapts, Key
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.double_backward import explain
from lightning_gp.functional.inner_loop import run
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.linearised import Predict
from lightning_gp.functional.linearity import loss_gradient_ratio, phase_consistency
from lightning_gp.functional.output_jacobian import amplitude_consistency, linearisation_error
from lightning_gp.functional.prototype import prototype_agreement, prototype_cosine, prototype_scores
from lightning_gp.functional.step_noise import noise_term
from lightning_gp.types import Parameters


class PhaseAmplitudeConsistency(Probe):
    """How linear the inner loop is ("Enforcing zero-Hessian in meta-learning", 2022, Eq. 3-5).

    - Modules with an ``inner_loop()`` (the MAML family): phase and amplitude consistency and what stands beside them
      below, of the inner loop on the probe batch, averaged over environments. f are the network's outputs before the
      softmax, J their Jacobian by the adapted parameters, g and H the gradient and Hessian of the support loss.
    - Any other module: along the path of the parameters during the epoch (with ``every_n_steps``, since the last
      value), ``phase_consistency`` and ``loss_gradient_ratio``, which is ``amplitude_consistency`` too: of such a
      module the loss is the one output f that is known. The others need outputs, which only an inner loop names.
      θ_k are the parameters after k batches that stepped. g(θ_k) is the gradient of step k itself, before clipping;
      that at the end of the path is not known, so the ratio is the mean over steps 1 … S−1, and left out for S = 1.
      With several optimizers it is the mean over them.

    Where the outputs are linear in the adapted parameters (ANIL), amplitude consistency is 1 and the linearisation
    error 0 up to rounding. Phase consistency is 1 there only if the loss keeps its direction, too: cross-entropy turns
    the gradient as it fits some examples before others.

    {keys}

    A path that is not at its end is saved in checkpoints (up to 64 MB) and goes on in a resumed run; if it is larger,
    that of a resumed run begins where the run does; likewise under FSDP2.

    Cost: for each of S + 1 points one forward pass of the probe batch's support sets and a backward pass for every
    output of every support example, or 32 where those are more than 64 (see ``functional.jacobian_norm``). With
    ``second_derivatives``, S double backward passes of the support sets, two forward passes and one double backward
    pass of the query sets. With ``prototype``, two forward passes and a double backward pass of its query sets. Along
    the outer path: two copies of the parameters, and one pass over parameters and gradients per step.

    Args:
        prototype: compare the adapted classifier f(x|θ_S) with the prototype classifier J(x)(θ_1 − θ_0) (appendix D;
            ``functional.prototype`` has the definitions). Needs a module of the MAML family and class logits.
        second_derivatives: also the linearisation error and the noise term, which differentiate twice.
        **kwargs: see ``Probe``.

    Raises:
        ValueError: in ``setup``, if ``prototype`` meets a module without an inner loop.
        RuntimeError: before the first optimizer step, if an operation has no double backward and
            ``second_derivatives`` is left on.
    """

    keys = (
        Key("linearity/phase_consistency", "[1, ∞]", "PC, 1 when the path is straight (so always for one step)"),
        Key("linearity/amplitude_consistency", "[0, ∞]", "AC = (1/S) Σ_k ‖J(θ_k)‖_F / ‖J(θ_0)‖_F, 1 where f is linear"),
        Key(
            "linearity/loss_gradient_ratio",
            "[0, ∞]",
            "(1/S) Σ_k ‖g(θ_k)‖ / ‖g(θ_0)‖: how much of the support loss is left to learn, whether f is linear or not",
        ),
        Key(
            "linearity/linearisation_error",
            "[0, ∞]",
            "‖f(θ_S) − f(θ_0) − J(θ_S − θ_0)‖ / ‖f(θ_S) − f(θ_0)‖ on the query inputs, 0 where f is linear",
        ),
        Key(
            "linearity/noise",
            "(−∞, ∞)",
            "(1/S) Σ_k α gᵀHg / ‖g‖²: a step lowers the support loss below 2, to second order",
        ),
        Key(
            "linearity/prototype_agreement",
            "[0, 1]",
            "with ``prototype``: share of query examples of which the adapted classifier and the prototype classifier "
            "of the linearised network pick the same class",
        ),
        Key("linearity/prototype_cosine", "[−1, 1]", "with ``prototype``: cosine of their logits"),
    )

    def __init__(self, prototype: bool = False, second_derivatives: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.flag(prototype=prototype, second_derivatives=second_derivatives)
        self.prototype, self.second_derivatives = prototype, second_derivatives

    def begin(self) -> None:
        """Also forgets the path."""
        super().begin()
        self._path: OuterPath | None = None
        self._saved_path: dict[str, Any] = {}
        self._stepped = False

    def needs_loss(self, pl_module: LightningModule) -> bool:
        """Only where there is an inner loop."""
        return isinstance(pl_module, Adapts)

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """The outer path alone: an inner loop differentiates by the parameters at each of its steps."""
        return not self.needs_loss(pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also checks that an inner loop has its loss."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.loss is not None and not isinstance(self.loss, EnvironmentLoss):
            raise ValueError(
                f"PhaseAmplitudeConsistency follows {type(pl_module).__name__}.inner_loop(), which has a loss of its "
                "own; remove loss_fn."
            )
        if stage == "fit" and self.prototype and self.loss is None:
            raise ValueError(
                f"prototype=True compares classifiers of an inner loop, but {type(pl_module).__name__} lacks the "
                "methods inner_loop and predict of the MAML family; leave prototype False."
            )

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One inner loop."""
        self._of(loss, piece)

    def measure(self, measurement: Measurement) -> Report:
        """Everything of the inner loop."""
        found: dict[str, list[Tensor]] = {}
        for piece in measurement.pieces:
            for name, value in self._of(measurement.loss, piece).items():
                found.setdefault(f"linearity/{name}", []).append(value)
        return Report({key: measurement.mean_over_environments(torch.cat(values)) for key, values in found.items()})

    def _of(self, loss: AnyLoss, piece: Piece) -> dict[str, Tensor]:
        """What is measured, (E,), of each environment of a piece."""
        assert isinstance(loss, EnvironmentLoss)
        assert isinstance(piece, Environments)
        assert isinstance(loss.objective, Adapts)
        with plain_kernels(second_order=self.second_derivatives or self.prototype):
            return self._values(loss.objective, loss.complete(loss.parameters()), piece)

    def _values(self, objective: Adapts, theta: Parameters, piece: Environments) -> dict[str, Tensor]:
        loop, predict = objective.inner_loop(), objective.predict
        trajectory = run(loop, theta, piece.support, final_gradient=True, create_graph=False)
        values = {
            "phase_consistency": phase_consistency(trajectory),
            "amplitude_consistency": amplitude_consistency(predict, trajectory, piece.support[0]),
            "loss_gradient_ratio": loss_gradient_ratio(trajectory),
        }
        x, _ = piece.split("query")
        if self.second_derivatives:
            try:
                values["linearisation_error"] = linearisation_error(predict, trajectory, x)
                values["noise"] = noise_term(loop.loss, trajectory, piece.support)
            except RuntimeError as error:
                if (reason := explain(error)) is error:
                    raise
                raise RuntimeError(f"{reason} Or give second_derivatives=False.") from error
        if self.prototype:
            values |= _prototype_values(predict, trajectory, x)
        return values

    # -- the outer path -----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A path begins, or the one in the checkpoint goes on."""
        super().on_train_start(trainer, pl_module)
        self._path = None
        if self.loss is None:
            reshard(pl_module)
            self._path = OuterPath([parameter for parameter in pl_module.parameters() if parameter.requires_grad])
            self._path.load(self._saved_path)
        self._saved_path = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new path begins; Lightning does not come here when it resumes in the middle of an epoch."""
        if self._path is not None and self.every_n_steps is None:
            self._path.begin()

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """Notes the gradient's norm."""
        super().on_step(trainer, pl_module, optimizer, position)
        self._stepped = True
        if self._path is not None:
            self._path.add_gradient(optimizer, position)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Adds a step to the path."""
        if self._path is not None and self._stepped:
            self._path.add_step()
        self._stepped = False
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def report_without_probe(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """What can be known of the outer path."""
        if self._path is None or not self._path.steps:
            return Report()
        report = Report({f"linearity/{name}": value for name, value in self._path.consistencies().items()})
        self._path.begin()
        return report

    def state_dict(self) -> dict[str, Any]:
        """The probe batch, and the path so far."""
        path = self._path.state() if self._path is not None else {}
        return {**super().state_dict(), "path": path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        super().load_state_dict(state_dict)
        self._saved_path = state_dict.get("path", {})


def _prototype_values(predict: Predict, trajectory: Trajectory, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        adapted: Tensor = over_environments(predict, trajectory.parameters[-1], trajectory.shared, x)
    scores = prototype_scores(predict, trajectory, x)
    return {
        "prototype_agreement": prototype_agreement(adapted, scores),
        "prototype_cosine": prototype_cosine(adapted, scores),
    }
