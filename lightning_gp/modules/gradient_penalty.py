"""Training with a penalty on the gradient norm, of either sign.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import CurvatureKind, Dealt, Key, Rate
from lightning_gp.environments import Environments
from lightning_gp.functional.agreement import differentiable_gradients
from lightning_gp.functional.precomputed import Evaluated, Evaluation
from lightning_gp.functional.processes import processes, sum_over_processes
from lightning_gp.functional.stacks import as_rows
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.networks.parts import select_parameters
from lightning_gp.types import ModuleOptions, Parameters

Coefficient = float | Mapping[str, float]
"""One number for all parameters, or one per group; a group is a parameter name or a prefix, such as ``"head"``."""


class GradientPenalty(NamedEnvironmentModule):
    """mean_τ [ L_τ(θ) + sign·α ‖∇L_τ(θ)‖² ], with α and not α/2 [T21, Eq. 1-2].

    ``sign=-1`` pulls towards large gradients, as MAML does; ``sign=+1`` towards small ones, as IRM does. The gradient
    is exact, g + 2·sign·α·H g: one double backward through the graph of g gives the Hessian-vector product, and nothing
    differentiates the loss a second time. The theory of [T21, sections VII-VIII] is in terms of α/2: its α is twice
    this one.

    With ``sign=-1`` the objective has no minimum where α exceeds 1/(2 λ_max) of the Hessian: too large an α diverges.

    **Several devices.** Where data are dealt in ``"shares"``, every process holds a share of *each* environment: the
    gradient g is then averaged over processes before it is multiplied with the Hessian and before its norm is taken, so
    that the penalty is that of the whole environment, also where the shares are not of equal size. With ``"episodes"``
    each process holds whole environments of its own, as many as any other.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        coefficient: α ≥ 0, or a mapping from groups of parameters (names or prefixes) to their α; parameters of no
            group are not penalised.
        sign: -1 or +1.
        dealt: ``"shares"`` or ``"episodes"``, see above; None for what the data module declares, or else episodes.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if α is negative, a group names no parameter or overlaps another, or ``sign`` is not ±1.

    Example:
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = GradientPenalty(SinusoidMLP(), coefficient=0.01, sign=-1, criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(3, 10, 1), torch.ones(3, 10, 1)))).shape
        torch.Size([])
    """

    keys = (
        *NamedEnvironmentModule.keys,
        Key("train/risk", "ℝ", "the loss without the penalty"),
        Key("train/penalty", "[0, ∞)", "α‖∇L‖², without sign"),
        Key("<stage>/penalty", "[0, ∞)", "the same of the examples of the whole epoch"),
    )

    def __init__(
        self,
        network: nn.Module,
        coefficient: Coefficient = 0.01,
        sign: int = 1,
        dealt: Dealt | None = None,
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, **kwargs)
        checks.choice((-1, 1), hint="+1 draws towards small gradients, -1 towards large ones", sign=sign)
        checks.choice((None, "episodes", "shares"), dealt=dealt)
        self.save_hyperparameters()
        self.coefficients = coefficients_by_name(network, coefficient)
        self.sign = sign
        self.dealt = dealt

    @property
    def second_order(self) -> bool:
        """Training differentiates a gradient."""
        return True

    handles = ("episodes", "shares")

    def rate(self) -> Rate:
        """The coefficient of all groups; the theory's α is twice as large."""

        def put(alpha: float) -> None:
            self.coefficients = dict.fromkeys(self.coefficients, alpha)

        kind: CurvatureKind = "positive_penalty" if self.sign == 1 else "fomaml"
        return Rate(
            "coefficient",
            "coefficient α",
            lambda: tuple(self.coefficients.values()),
            put,
            kind,
            factor=2.0,
            names=list(self._penalised()),
        )

    def term_weights(self) -> Mapping[str, float]:
        """The sign of the penalty."""
        return {"penalty": float(self.sign)}

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``risk`` L_τ and ``penalty`` α‖∇L_τ‖² of each environment, (E,), by plain autograd.

        For callbacks and tests: they may be differentiated any number of times. With shared examples both are those of
        all processes' examples.
        """
        losses, gradients = self._losses_and_gradients(parameters, environments)
        if self.shares_examples:
            targets = self.trained_examples(environments)[1]
            losses = self.mean_over_examples(losses, targets)
            sizes = [gradient[0].numel() for gradient in gradients.values()]
            rows = [as_rows(gradient) for gradient in gradients.values()]
            whole = self.mean_over_examples(torch.cat(rows, dim=1), targets)
            gradients = dict(zip(gradients, whole.split(sizes, dim=1), strict=True))
        penalties = sum(
            (alpha * as_rows(gradients[name]).square().sum(1) for name, alpha in self._penalised().items()),
            start=torch.zeros_like(losses),
        )
        return {"risk": losses, "penalty": penalties}

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Loss, accuracy, and the gradient times √α, of which ``summarize`` makes the penalty."""
        _, gradients = self._losses_and_gradients(parameters, Environments((x.unsqueeze(0), y.unsqueeze(0))))
        scaled = [alpha**0.5 * gradients[name].detach().flatten() for name, alpha in self._penalised().items()]
        return {**super().measure(parameters, x, y), "gradient": torch.cat(scaled)}

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``penalty`` and ``objective``: squared after averaging, so no batch size biases them."""
        penalty = values.pop("gradient").square().sum(1)
        return {**values, "penalty": penalty, "objective": values["loss"] + self.sign * penalty}

    def _penalised(self) -> dict[str, float]:
        """α of the parameters that are not frozen."""
        frozen = {name for name, value in self.network.named_parameters() if not value.requires_grad}
        return {name: alpha for name, alpha in self.coefficients.items() if name not in frozen}

    def _losses_and_gradients(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Parameters]:
        """L_τ, (E,), and its gradients (E, *shape) with their graph."""
        return differentiable_gradients(self.loss, parameters, self.trained_examples(environments))

    # -- the written-out gradient -------------------------------------------------------------------------------

    def explicit(self, total: int) -> Evaluation[Environments] | None:
        """The gradient g + 2·sign·α·H g, unless a subclass changed the objective, and so its gradient."""
        own = type(self).environment_terms is GradientPenalty.environment_terms
        own = own and type(self).environment_objectives is EnvironmentModule.environment_objectives
        return partial(self._evaluated, total=total) if own else None

    def _evaluated(self, environments: Environments, total: int) -> Evaluated:
        trained = {name: value for name, value in self.network_parameters().items() if value.requires_grad}
        leaves = {name: value.detach().requires_grad_() for name, value in trained.items()}
        frozen = {name: value for name, value in self.network_parameters().items() if name not in trained}
        losses, gradients = self._losses_and_gradients({**leaves, **frozen}, environments)
        own = {name: gradients[name].detach() for name in trained}
        targets = self.trained_examples(environments)[1]
        penalised = self._penalised()
        whole = {name: self.mean_over_examples(own[name], targets) for name in penalised}
        directions = [alpha * whole[name] for name, alpha in penalised.items()]
        products = self._hessian_products([gradients[name] for name in penalised], leaves, directions)
        share = self._share(losses, targets)  # DDP takes the plain mean over processes
        value = risk = self.mean_over_examples(losses.detach(), targets).sum()
        for name, alpha in penalised.items():
            value = value + self.sign * alpha * whole[name].square().sum()
        by_parameter = {
            id(parameter): share * (own[name].sum(0) + 2 * self.sign * product) / total
            for (name, parameter), product in zip(trained.items(), products, strict=True)
        }
        known = [by_parameter.get(id(each), torch.zeros_like(each)) for each in self.trained_parameters()]
        terms = {"risk": risk / total, "penalty": self.sign * (value - risk) / total}
        return Evaluated(value / total, known, terms)

    @staticmethod
    def _hessian_products(gradients: list[Tensor], leaves: Parameters, directions: list[Tensor]) -> list[Tensor]:
        curved = [(g, v) for g, v in zip(gradients, directions, strict=True) if g.requires_grad]
        if not curved:  # a loss linear in θ
            return [torch.zeros_like(leaf) for leaf in leaves.values()]
        outputs, vectors = zip(*curved, strict=True)
        return list(torch.autograd.grad(outputs, list(leaves.values()), vectors, materialize_grads=True))

    def _share(self, losses: Tensor, targets: Tensor) -> Tensor:
        """This process's examples over the mean number of examples on a process, in the precision of the losses."""
        count = losses.new_full((), targets.shape[1])
        return count * processes() / sum_over_processes(count) if self.shares_examples else torch.ones_like(count)


def coefficients_by_name(network: nn.Module, coefficient: Coefficient) -> dict[str, float]:
    """α of each penalised parameter.

    Raises:
        ValueError: if α is negative, or a group names no trainable parameter or overlaps another group.
    """
    groups = coefficient if isinstance(coefficient, Mapping) else {"all": coefficient}
    result: dict[str, float] = {}
    for group, alpha in groups.items():
        name = f"coefficient[{group!r}]" if isinstance(coefficient, Mapping) else "coefficient"
        checks.number(minimum=0, hint="", **{name: alpha})
        try:
            names = select_parameters(network, group)
        except ValueError as error:
            raise ValueError(f"coefficient names the group {group!r}: {error}") from error
        twice = sorted(set(names) & set(result))
        if twice:
            raise ValueError(
                f"coefficient[{group!r}] names {twice}, which another group names, too; make them disjoint."
            )
        result.update(dict.fromkeys(names, float(alpha)))
    return result
