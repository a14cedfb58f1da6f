"""How to read the recursion of each optimizer of ``torch.optim``, and its preconditioner, off its groups and state.

The recursion and its symbols are those of :mod:`~lightning_gp.theory.optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp.theory.recursion import Recursion

Group: TypeAlias = Mapping[str, Any]
State: TypeAlias = Mapping[str, Any]
Scale: TypeAlias = "Tensor | float"


@dataclass(frozen=True)
class Kind:
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


KINDS: Mapping[type[Optimizer], Kind] = {
    torch.optim.SGD: Kind(_sgd, lambda group, state: 1.0),
    torch.optim.Adam: Kind(_first_moment, _first_moment_scale(_adam_scale)),
    torch.optim.AdamW: Kind(_first_moment, _first_moment_scale(_adam_scale)),
    torch.optim.NAdam: Kind(_nadam, _adam_scale),
    torch.optim.RAdam: Kind(_first_moment, _first_moment_scale(_radam_scale)),
    torch.optim.Adamax: Kind(_first_moment, _first_moment_scale(_adamax_scale)),
    torch.optim.RMSprop: Kind(_no_momentum, _rmsprop_scale),
    torch.optim.Adagrad: Kind(_no_momentum, _adagrad_scale),
}
