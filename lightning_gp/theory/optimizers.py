"""At which curvature the step of a ``torch.optim`` optimizer stops to converge, from the optimizer itself.

Near a minimum of an objective with Hessian H, a step of any of these optimizers is one linear recursion, with the
second moments (and whatever else scales the gradient) held at the values P = diag(p) of the step that was taken last:

    m ← μ m + γ g,      θ ← (1 − βw) θ − β P⁻¹ (a g + b m),      g = (H + W) θ

with the rate β, the momentum μ, its gain γ, the weights a of the gradient and b of the buffer, decoupled weight decay w
and coupled weight decay W. In a direction of curvature c of P^{-1/2}(H + W)P^{-1/2} its characteristic polynomial is

    z² − (1 + μ − βw − βc(a + bγ)) z + μ(1 − βw − βca)

For c > 0 its roots leave the unit disc through z = −1, at

    c(a + bγ + μa) β = (1 + μ)(2 − βw).

| optimizer | μ | γ | a | b | p |
|---|---|---|---|---|---|
| SGD, momentum μ, dampening d | μ | 1 − d | 0 | 1 | 1 |
| with Nesterov | μ | 1 − d | 1 | μ | 1 |
| Adam, AdamW, Adamax, RAdam | β₁ | 1 − β₁ | 0 | 1 | √v̂ + ε (AMSGrad: of the largest v; RAdam: over its r) |
| NAdam | β₁ | 1 − β₁ | 1 − μ_t | μ_{t+1} | √v̂ + ε |
| RMSprop | μ | 1 | 0 | 1 | √v + ε (centered: √(v − ḡ²) + ε) |
| Adagrad | 0 | 1 | 0 | 1 | √Σg² + ε |

Sources: J. Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability; J. Cohen
et al. (2022), Adaptive gradient methods at the edge of stability.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp.theory.optimizer_kinds import KINDS, Kind, Scale
from lightning_gp.theory.recursion import Recursion


@dataclass(frozen=True)
class UpdateRule:
    """What one step of an optimizer does to a curvature, at its present state.

    Attributes:
        recursion: the linear recursion.
        rate: β, the largest of the rates of the groups.
        decay: w, decoupled; the largest of the groups.
        scales: by ``id`` of each parameter: β_g/(β p), its share of a step in place of 1/p; (*shape) or a number.
            Parameters that the optimizer does not know do not move: 0.
        coupled: by ``id`` of each parameter, coupled weight decay.
    """

    recursion: Recursion
    rate: float
    decay: float = 0.0
    scales: Mapping[int, Scale] = field(default_factory=dict)
    coupled: Mapping[int, float] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether anything moves; not so before the first step of an optimizer whose second moments make P."""
        return any(bool((torch.as_tensor(scale) > 0).any()) for scale in self.scales.values())

    def critical_rate(self, curvature: complex) -> float:
        """The rate (of the group of the largest rate, the others in proportion) at which steps stop to converge.

        Args:
            curvature: an eigenvalue of P^{-1/2}(H + W)P^{-1/2}, the largest real one or a complex one.
        """
        return self.recursion.critical_rate(curvature, self.decay)

    def edge(self, curvature: complex) -> float:
        """The distance to the edge: the rate in use over the critical one. 1 is the edge, for every optimizer.

        Args:
            curvature: as for ``critical_rate``.
        """
        return self.rate / self.critical_rate(curvature)

    def root_scales(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The diagonal of P^{-1/2}, flat, in the order of ``parameters`` (the very tensors that the optimizer holds).

        Args:
            parameters: by name.
        """
        parts = [
            torch.as_tensor(self.scales.get(id(value), 0.0), dtype=_real(value), device=value.device)
            .expand(value.shape)
            .reshape(-1)
            for value in parameters.values()
        ]
        return torch.cat(parts).sqrt()

    def coupled_decay(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The diagonal of W, flat; None where it is 0.

        Args:
            parameters: by name.
        """
        if not any(self.coupled.values()):
            return None
        each = [value.new_full((value.numel(),), self.coupled.get(id(value), 0.0)) for value in parameters.values()]
        return torch.cat(each)


def check_known(optimizer: Optimizer) -> None:
    """Refuses an optimizer of which no rule can be read.

    Args:
        optimizer: any.

    Raises:
        ValueError: if its step is not one of this module's docstring (a subclass may have another), it maximizes, or
            its groups differ in what decides the recursion (momentum, betas).
    """
    _known(optimizer)


def update_rule(optimizer: Optimizer) -> UpdateRule:
    """Reads the rule of a ``torch.optim`` optimizer off its groups and its state.

    Parameter groups may have rates, ε and weight decay of their own; decoupled decay counts by the largest, which
    changes the critical rate by less than βw/2 of it. Where all rates are 0, such as at the start of a warm-up, the
    groups count alike.

    Args:
        optimizer: after its first step, if it is one with a state.

    Raises:
        ValueError: see ``check_known``.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> rule = update_rule(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
        >>> round(rule.recursion.critical_curvature(rule.rate), 6)
        38.0
    """
    kind, recursion = _known(optimizer)
    groups = optimizer.param_groups
    rate = max(float(group["lr"]) for group in groups)
    scales: dict[int, Scale] = {}
    coupled, decays = {}, [0.0]
    for group in groups:
        decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))
        decay = float(group.get("weight_decay", 0.0))
        decays.append(decay if decoupled else 0.0)
        for parameter in group["params"]:
            scale = kind.inverse_scale(group, optimizer.state.get(parameter, {}))
            scales[id(parameter)] = scale * (float(group["lr"]) / rate if rate else 1.0)
            coupled[id(parameter)] = 0.0 if decoupled else decay
    return UpdateRule(recursion, rate, max(decays), scales, coupled)


def _known(optimizer: Optimizer) -> tuple[Kind, Recursion]:
    name, own = type(optimizer).__name__, inspect.unwrap(type(optimizer).step)  # torch wraps it for profiling
    kind = next((kind for each, kind in KINDS.items() if own is inspect.unwrap(each.step)), None)
    if kind is None:
        known = ", ".join(each.__name__ for each in KINDS)
        raise ValueError(
            f"The stability of a step of {name} is not known here; known are {known} of torch.optim. The rate at which "
            "the loss turns up can be measured for any optimizer: CriticalLearningRate."
        )
    groups = optimizer.param_groups
    if any(group.get("maximize") for group in groups):
        raise ValueError(f"{name}(maximize=True) ascends: it has no edge. Minimise the negative loss instead.")
    recursions = {kind.recursion(group, optimizer.state) for group in groups}
    if len(recursions) > 1:
        raise ValueError(
            f"The parameter groups of {name} differ in momentum or betas, and one edge cannot describe them: "
            f"{sorted(map(repr, recursions))}. Give them the same."
        )
    return kind, recursions.pop()


def _real(value: Tensor) -> torch.dtype:
    return value.real.dtype if value.is_complex() else value.dtype
