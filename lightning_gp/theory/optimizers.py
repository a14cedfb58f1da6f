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

import cmath
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

Group: TypeAlias = Mapping[str, Any]
State: TypeAlias = Mapping[str, Any]
Scale: TypeAlias = "Tensor | float"


@dataclass(frozen=True)
class Recursion:
    """The linear recursion of this module's docstring, but for P, W and the rate.

    Attributes:
        momentum: μ.
        gain: γ.
        direct: a.
        buffered: b.
    """

    momentum: float = 0.0
    gain: float = 1.0
    direct: float = 0.0
    buffered: float = 1.0

    @property
    def stiffness(self) -> float:
        """The factor a + bγ + μa of a curvature where the sign of θ changes from step to step."""
        return self.direct * (1 + self.momentum) + self.buffered * self.gain

    def critical_curvature(self, rate: float, decay: float = 0.0) -> float:
        """The largest real c at which steps of rate β converge: (1 + μ)(2 − βw) / (β(a + bγ + μa)).

        Args:
            rate: β > 0.
            decay: w, decoupled.

        Example:
            >>> Recursion().critical_curvature(0.1)
            20.0
            >>> round(Recursion(momentum=0.9, gain=0.1).critical_curvature(0.1), 6)  # Adam: 38/β
            380.0
        """
        return (1 + self.momentum) * (2 - rate * decay) / (rate * self.stiffness)

    def critical_rate(self, curvature: complex, decay: float = 0.0) -> float:
        """The smallest rate β at which steps no longer converge in a direction of curvature c.

        A curvature that is not real belongs to an update that is no gradient, such as FOMAML's. Directions of Re c ≤ 0
        repel at any rate and are left out of account, as in ``critical_outer_lr``: ∞.

        Args:
            curvature: c.
            decay: w.

        Example:
            >>> Recursion().critical_rate(20.0)
            0.1
        """
        if curvature.real <= 0:
            return math.inf
        if curvature.imag == 0:
            return (1 + self.momentum) * 2 / (curvature.real * self.stiffness + (1 + self.momentum) * decay)
        high = 2 * self.critical_rate(complex(curvature.real), decay)  # a turning direction is no more stable
        low = 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.spectral_radius(curvature, middle, decay) < 1 else (low, middle)
        return high

    def spectral_radius(self, curvature: complex, rate: float, decay: float = 0.0) -> float:
        """The larger modulus of the two roots of the characteristic polynomial.

        Args:
            curvature: c.
            rate: β.
            decay: w.
        """
        kept = 1 - rate * decay
        trace = kept + self.momentum - rate * curvature * (self.direct + self.buffered * self.gain)
        determinant = self.momentum * (kept - rate * curvature * self.direct)
        root = cmath.sqrt(trace * trace - 4 * determinant)
        return max(abs(trace + root), abs(trace - root)) / 2


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


def _known(optimizer: Optimizer) -> tuple[_Kind, Recursion]:
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


# -- the optimizers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How to read an optimizer's recursion off a group (and the state), and 1/p off the state of a parameter."""

    recursion: Callable[[Group, Mapping[Tensor, State]], Recursion]
    inverse_scale: Callable[[Group, State], Scale]


def _sgd(group: Group, states: Mapping[Tensor, State]) -> Recursion:
    momentum = float(group["momentum"])
    if momentum == 0:
        return Recursion()
    gain = 1 - float(group["dampening"])
    return Recursion(momentum, gain, 1.0, momentum) if group["nesterov"] else Recursion(momentum, gain)


def _first_moment(group: Group, states: Mapping[Tensor, State]) -> Recursion:
    beta = float(group["betas"][0])
    return Recursion(beta, 1 - beta)


def _nadam(group: Group, states: Mapping[Tensor, State]) -> Recursion:
    beta = float(group["betas"][0])
    state = next((states[each] for each in group["params"] if states.get(each)), None)
    if state is None:
        return Recursion(beta, 1 - beta)
    # The schedule of [Dozat, 2016], at the coming step.
    step, psi = float(state["step"]) + 1, float(group["momentum_decay"])
    now, following = (beta * (1 - 0.5 * 0.96 ** (each * psi)) for each in (step, step + 1))
    product = float(state["mu_product"]) * now
    return Recursion(beta, 1 - beta, (1 - now) / (1 - product), following / (1 - product * following))


def _no_momentum(group: Group, states: Mapping[Tensor, State]) -> Recursion:
    return Recursion(float(group.get("momentum", 0.0)))


def _adam_scale(group: Group, state: State) -> Scale:
    if not state:
        return 0.0
    step = float(state["step"])
    second = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** step
    scale: Tensor = 1 / ((second / correction).sqrt() + float(group["eps"]))
    return scale


def _first_moment_scale(scale: Callable[[Group, State], Scale]) -> Callable[[Group, State], Scale]:
    """With the correction 1/(1 − β₁^t) of the first moment, which NAdam has in its schedule."""

    def corrected(group: Group, state: State) -> Scale:
        return scale(group, state) / (1 - float(group["betas"][0]) ** float(state["step"])) if state else 0.0

    return corrected


def _radam_scale(group: Group, state: State) -> Scale:
    if not state:
        return 0.0
    step, beta = float(state["step"]), float(group["betas"][1])
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / (1 - beta**step)
    if length <= 5:
        return 1.0
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    scale: Tensor = math.sqrt(rectified * (1 - beta**step)) / (state["exp_avg_sq"].sqrt() + float(group["eps"]))
    return scale


def _adamax_scale(group: Group, state: State) -> Scale:
    return 1 / state["exp_inf"] if state else 0.0


def _rmsprop_scale(group: Group, state: State) -> Scale:
    if not state:
        return 0.0
    second = state["square_avg"]
    if group["centered"]:
        second = second - state["grad_avg"].square()
    scale: Tensor = 1 / (second.clamp(min=0).sqrt() + float(group["eps"]))
    return scale


def _adagrad_scale(group: Group, state: State) -> Scale:
    if not state or float(state["step"]) == 0:
        return 0.0
    slowed = 1 + (float(state["step"]) - 1) * float(group["lr_decay"])  # the rate falls as 1/slowed
    scale: Tensor = 1 / (slowed * (state["sum"].sqrt() + float(group["eps"])))
    return scale


KINDS: Mapping[type[Optimizer], _Kind] = {
    torch.optim.SGD: _Kind(_sgd, lambda group, state: 1.0),
    torch.optim.Adam: _Kind(_first_moment, _first_moment_scale(_adam_scale)),
    torch.optim.AdamW: _Kind(_first_moment, _first_moment_scale(_adam_scale)),
    torch.optim.NAdam: _Kind(_nadam, _adam_scale),
    torch.optim.RAdam: _Kind(_first_moment, _first_moment_scale(_radam_scale)),
    torch.optim.Adamax: _Kind(_first_moment, _first_moment_scale(_adamax_scale)),
    torch.optim.RMSprop: _Kind(_no_momentum, _rmsprop_scale),
    torch.optim.Adagrad: _Kind(_no_momentum, _adagrad_scale),
}


def _real(value: Tensor) -> torch.dtype:
    return value.real.dtype if value.is_complex() else value.dtype
