"""Invariant risk minimisation with an information bottleneck.

Source:
    [A21] K. Ahuja et al. (2021), Invariance principle meets information bottleneck for out-of-distribution
    generalization.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Dealt, Key
from lightning_gp.environments import Environments
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.outputs import tensor_of
from lightning_gp.networks.parts import named_submodule
from lightning_gp.types import ModuleOptions, Parameters


class IBIRM(IRMv1):
    """IRMv1 + γ mean_τ Var_τ(Φ): mean_τ [ R_τ + λ (∂R_τ(w·f)/∂w)² + γ Var_τ(Φ) ] [A21, Eq. 8].

    Φ(x) is the input of the last layer, Var its variance over the examples of an environment (divisor K), mean over the
    features: the bottleneck that keeps out features which are not needed. With γ = 0 it is ``IRMv1``.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        penalty_weight: λ ≥ 0; see ``InvarianceModule``, as for all that follow.
        anneal_steps: steps with λ = 1 at the start.
        rescale_loss: divide the objective by λ where that is above 1.
        l2: weight of ‖θ‖².
        dealt: how data are dealt to processes.
        bottleneck_weight: γ ≥ 0.
        head: name of the last layer in the network, such as ``"head"``, or ``"2"`` of an ``nn.Sequential``.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if a number is negative or there is no such layer.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> module = IBIRM(network, penalty_weight=10.0, head="2", criterion=nn.BCEWithLogitsLoss())
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = (*IRMv1.keys, Key("train/feature_variance", "[0, ∞)", "Var Φ, without γ"))
    handles = ("episodes", "shares")

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: float = 1.0,
        anneal_steps: int = 0,
        rescale_loss: bool = False,
        l2: float = 0.0,
        dealt: Dealt | None = None,
        bottleneck_weight: float = 0.1,
        head: str = "head",
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, penalty_weight, anneal_steps, rescale_loss, l2, dealt, **kwargs)
        checks.number(minimum=0, bottleneck_weight=bottleneck_weight)
        named_submodule(network, head)
        self.bottleneck_weight, self.head = bottleneck_weight, head

    def term_weights(self) -> Mapping[str, float]:
        """Besides those of ``IRMv1``, γ on the variance of the features."""
        return {**super().term_weights(), "feature_variance": self.bottleneck_weight}

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``risk``, ``penalty``, ``feature_variance`` and, where it has a weight, ``weight_decay``, (E,)."""
        x, y = self.trained_examples(environments)
        logits, features = self.unadapted(self._outputs_and_features, parameters, x)
        variances = self.variance_over_examples(features.flatten(2), y).mean(1)
        terms = self.terms(parameters, self.risks(logits, y), self.penalties(logits, y))
        return {**terms, "feature_variance": variances}

    def _outputs_and_features(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        features: list[Tensor] = []
        layer = self.network.get_submodule(self.head)
        hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            outputs = self.predict(parameters, x)
        finally:
            hook.remove()
        if len(features) != 1:
            raise ValueError(
                f"head={self.head!r} runs {len(features)} times in one pass of {type(self.network).__name__}; name the "
                "last layer, whose one input are the features."
            )
        return outputs, tensor_of(features[0], layer)

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """As ``IRMv1``, and two moments of the features."""
        features = self._outputs_and_features(parameters, x)[1].detach().double().flatten(1)
        moments = {"first": features.mean(0), "second": features.square().mean(0)}
        return {**super().measure(parameters, x, y), **moments}

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """As ``IRMv1``, with the bottleneck in the objective."""
        variance = (values.pop("second") - values.pop("first").square()).mean(1)
        summary = super().summarize(values)
        return {**summary, "objective": summary["objective"] + self.bottleneck_weight * variance}
