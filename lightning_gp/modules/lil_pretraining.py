"""``LILPretraining``: an initialisation whose inner loop is straight, found without the query labels.

[L22] "Enforcing zero-Hessian in meta-learning", 2022, Appendix E (later published as SHOT, NeurIPS 2023).
[G20] J.-B. Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020 (BYOL).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Key
from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.functional.inner_loop import run
from lightning_gp.functional.linearity import output_divergence, stretched
from lightning_gp.modules.collapse import output_variance, prototype_accuracy
from lightning_gp.modules.hooks import always
from lightning_gp.modules.inner_rates import InnerLR
from lightning_gp.modules.lil import REGRESSION, REGRESSION_MODULES
from lightning_gp.modules.maml import MAML
from lightning_gp.modules.statistics import EpisodeMean
from lightning_gp.types import InnerLoopOptions, Parameters


class LILPretraining(MAML):
    """Phase loss alone, between a one-step student and an S-step teacher [L22, App. E].

    mean_τ KL( s(f(x|ξ_S)) ‖ s(q(f(x|θ̂))) ) on the query inputs x, with

    - the teacher ξ, an exponential moving average of the student: ξ ← m ξ + (1 − m) θ after each optimizer step; it
      makes S inner steps and is a constant in the loss;
    - the student θ̂ = θ − ℓ g_0/‖g_0‖: one step along its own first inner gradient g_0, as long as the teacher's path,
      ℓ = Σ_k ‖ξ_{k+1} − ξ_k‖ [L22, Eq. 8 with the teacher's path, so that only the student's one step is
      differentiated]. With a rate per parameter, or another inner optimizer, −g_0 stands for its first step;
    - the predictor q, a small network on the student's logits as in [G20], which keeps both from collapsing.

    Inner loops use the labels of the support set. **Labels of the query set are never read in training**; validation
    reports with them how far the network got. Afterwards, ``load_pretrained(network, checkpoint)`` gives the network
    its initialisation for MAML, FOMAML or any other module.

    {keys}

    A collapse is a variance below ``collapse_variance``, or a probe that once was above chance and no longer is (95 %
    intervals).

    Args:
        network: a classifier; its last linear layer says how many classes.
        inner_lr: α of the teacher's inner steps.
        inner_steps: S of the teacher, and of validation.
        momentum: m in [0, 1].
        weight: factor on the loss; 0.1 in [L22].
        predictor_hidden: hidden units of the predictor; 0 for none, which invites collapse.
        on_collapse: ``"warn"`` or ``"error"`` at the end of the validation that finds it.
        collapse_variance: see above.
        first_order: treat g_0 as a constant, so that only θ and the predictor are differentiated.
        **kwargs: ``adapt`` and the rest of ``MAML`` and ``EnvironmentModule``.

    Raises:
        ValueError: if an argument is out of range, or the network is not a classifier of two or more classes.
        RuntimeError: at the end of a validation, on collapse with ``on_collapse="error"``.

    Example:
        >>> from lightning_gp.networks import Conv4
        >>> module = LILPretraining(Conv4(ways=3, channels=4, image_size=16), inner_lr=0.5)
        >>> x, y = torch.rand(2, 6, 1, 16, 16), torch.arange(3).repeat(2, 2)
        >>> module.training_loss(Environments(support=(x, y), query=(x, y))).shape
        torch.Size([])
    """

    keys = (
        *MAML.keys,
        Key(
            "<stage>/teacher_variance",
            "[0, 1]",
            "the variance over query examples of the adapted teacher's class probabilities, summed over classes",
        ),
        Key("<stage>/probe_accuracy", "[0, 1]", "of the nearest class mean in the student's features, not adapted"),
    )

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.5,
        inner_steps: int = 3,
        momentum: float = 0.999,
        weight: float = 0.1,
        predictor_hidden: int = 64,
        on_collapse: Literal["warn", "error"] = "warn",
        collapse_variance: float = 1e-6,
        first_order: bool = False,
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, **kwargs)
        checks.number(minimum=0, maximum=1, hint="0.999 is usual", momentum=momentum)
        checks.number(above=0, weight=weight)
        checks.number(minimum=0, collapse_variance=collapse_variance)
        checks.whole(0, predictor_hidden=predictor_hidden)
        checks.choice(("warn", "error"), on_collapse=on_collapse)
        if self.inner_rates.learned:
            raise ValueError(
                "learn_inner_lr=True has no effect on the phase loss; learn the rates with MAML afterwards."
            )
        if self.multi_step_loss:
            raise ValueError("multi_step_loss has no effect on the phase loss; leave it 0.")
        if self.criterion in REGRESSION or isinstance(self.criterion, REGRESSION_MODULES):
            name = getattr(self.criterion, "__name__", type(self.criterion).__name__)
            raise ValueError(
                f"LILPretraining compares class probabilities, but the criterion {name} is one of regression."
            )
        self.classes = _classes(network)
        self.momentum, self.weight = momentum, weight
        self.on_collapse, self.collapse_variance = on_collapse, collapse_variance
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.predictor = _predictor(self.classes, predictor_hidden)
        self._probe_worked = False

    # -- the loss -----------------------------------------------------------------------------------------------

    def term_weights(self) -> dict[str, float]:
        """``weight`` on the phase loss."""
        return {"phase_loss": self.weight}

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """The phase loss of each environment, (E,); of the query set only the inputs count."""
        x = environments.split("query")[0]
        path, target = self._teach(environments, x)
        student = run(replace(self.inner_loop(), steps=1, optimizer=None), parameters, environments.support)
        one_step = stretched(student.parameters[0], student.parameters[1], path.path_length)
        guess: Tensor = over_environments(self._predicted, one_step, student.shared, x)
        return {"phase_loss": output_divergence(target, guess)}

    def _teach(self, environments: Environments, x: Tensor) -> tuple[Trajectory, Tensor]:
        """The teacher's inner loop and its logits on x, (E, Q, C); constants."""
        teacher: Parameters = dict(self.teacher.named_parameters())
        path = self.adaptation(self.loss, teacher, environments, steps=self.inner_steps, create_graph=False)
        with torch.no_grad():
            logits: Tensor = over_environments(self.predict, path.parameters[-1], path.shared, x)
        return path, logits

    def _predicted(self, parameters: Parameters, x: Tensor) -> Tensor:
        logits: Tensor = self.predictor(self.predict(parameters, x))
        return logits

    def _try_out(self, batches: Sequence[Environments]) -> None:
        # Labels of the query set are not looked at in training, not even by the trial run.
        super()._try_out([each._replace(query=None) for each in batches] if self.training else batches)

    # -- the teacher --------------------------------------------------------------------------------------------

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's optimizer step, once per accumulated batch; then the teacher follows."""
        super().optimizer_step(*args, **kwargs)
        self.update_teacher()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """ξ ← m ξ + (1 − m) θ."""
        for slow, fast in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)

    # -- the collapse monitor -----------------------------------------------------------------------------------

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """What ``MAML`` reports for the student, ``teacher_variance`` and ``probe_accuracy``; each (E,)."""
        query = environments.split("query")
        _, logits = self._teach(environments, query[0])
        with torch.no_grad():
            probe: Tensor = over_environments(self._probe, {}, {}, *environments.support, *query)
            variance = torch.stack([output_variance(each) for each in logits])
        return {**super().evaluate(environments), "teacher_variance": variance, "probe_accuracy": probe}

    def _probe(self, _: Parameters, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        body = getattr(self.network, "body", None)
        features = body if isinstance(body, nn.Module) else self.network
        support = features(x).flatten(1), y
        return prototype_accuracy(support, (features(query_x).flatten(1), query_y), self.classes)

    @always
    def on_validation_epoch_end(self) -> None:
        """Logs the means over episodes, and says so if the network has collapsed."""
        super().on_validation_epoch_end()
        if self.trainer.sanity_checking or "0/teacher_variance" not in self.statistics:
            return
        names = ("teacher_variance", "probe_accuracy", "probe_accuracy_ci95")
        variance, accuracy, half_width = map(self._computed, names)
        works = accuracy - half_width > 1 / self.classes
        if variance < self.collapse_variance or (self._probe_worked and not works):
            self._collapsed(
                f"The pre-training has collapsed at step {self.global_step}: the variance of the teacher's outputs is "
                f"{variance:.3g} (limit {self.collapse_variance:g}), the nearest-class-mean accuracy {accuracy:.3f} "
                f"(chance {1 / self.classes:.3f}). Use an earlier checkpoint, a smaller outer learning rate, a "
                "momentum closer to 1, or a predictor (predictor_hidden > 0)."
            )
        self._probe_worked = self._probe_worked or works

    def _computed(self, name: str) -> float:
        statistic = self.statistics[f"0/{name}"]
        assert isinstance(statistic, EpisodeMean)
        return float(statistic.compute())

    @always
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps whether the probe was ever above chance, so that a resumed run notices a collapse as well."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["probe_worked"] = self._probe_worked

    @always
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See ``on_save_checkpoint``."""
        super().on_load_checkpoint(checkpoint)
        self._probe_worked = bool(checkpoint.get("probe_worked", False))

    def _collapsed(self, message: str) -> None:
        if self.on_collapse == "error":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _classes(network: nn.Module) -> int:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[-1].out_features < 2:
        last = f"a last linear layer of {layers[-1].out_features} output" if layers else "no linear layer"
        raise ValueError(
            f"LILPretraining compares class probabilities, but {type(network).__name__} has {last}. Use a classifier "
            "that ends in a linear layer of at least 2 outputs."
        )
    return layers[-1].out_features


def _predictor(classes: int, hidden: int) -> nn.Module:
    if hidden == 0:
        return nn.Identity()
    norm = nn.BatchNorm1d(hidden, track_running_stats=False)
    return nn.Sequential(nn.Linear(classes, hidden), norm, nn.ReLU(), nn.Linear(hidden, classes))
