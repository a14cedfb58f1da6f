"""What each optimizer of ``torch.optim`` does with one tensor, as a function of (θ, g, state, options).

Every rule works element by element, so that the environments of a stack (E, *shape) do not mix, and in the order of
operations of torch's own loop over tensors, so that the path is torch's. Options are numbers or tensors of one element;
only numbers decide in Python which way the computation goes, so that a rule can be traced.

Sources: the algorithm boxes in the documentation of ``torch.optim``; D. P. Kingma, J. Ba, "Adam", ICLR 2015; T. Dozat,
"Incorporating Nesterov momentum into Adam", 2016 (NAdam); L. Liu et al., "On the variance of the adaptive learning rate
and beyond", ICLR 2020 (RAdam); M. D. Zeiler, "ADADELTA", 2012; J. Duchi et al., JMLR 2011 (Adagrad).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Options: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Any]
Number: TypeAlias = float | Tensor


class Rule(NamedTuple):
    """One optimizer.

    Attributes:
        update: (θ, g, state, options) -> (next θ, next state), the sign of g and weight decay already applied.
        begin: (θ, options) -> the state before the first step; these entries must be in a state that is loaded.
        options: the names of the options that are followed, beside ``lr``, ``weight_decay`` and ``maximize``.
    """

    update: Callable[[Tensor, Tensor, State, Options], tuple[Tensor, State]]
    begin: Callable[[Tensor, Options], State]
    options: frozenset[str]


def matters(option: Number) -> bool:
    """Whether an option must be computed with: a number other than 0, or any tensor."""
    return isinstance(option, Tensor) or option != 0


def directed(value: Tensor, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """θ and g after ``maximize`` and weight decay, which come first in every rule."""
    gradient = -gradient if options["maximize"] else gradient
    decay = options["weight_decay"]
    if not matters(decay):
        return value, gradient
    if options.get("decoupled_weight_decay"):
        return value * (1 - options["lr"] * decay), gradient
    return value, _plus(gradient, value, decay)


def _sgd(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    momentum = options["momentum"]
    if not matters(momentum):
        return _plus(value, gradient, -options["lr"]), state
    velocity = state.get("momentum_buffer")
    if velocity is None:  # the first velocity is the gradient itself, without dampening
        velocity = gradient
    else:
        velocity = _plus(velocity * momentum, gradient, 1 - options["dampening"])
    direction = _plus(gradient, velocity, momentum) if options["nesterov"] else velocity
    return _plus(value, direction, -options["lr"]), {"momentum_buffer": velocity}


def _adam(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    state, first, second = _moments(gradient, state, options)
    if options["amsgrad"]:
        state["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], state["exp_avg_sq"])
    squares = state["max_exp_avg_sq" if options["amsgrad"] else "exp_avg_sq"]
    scale = _root(squares) / second**0.5 + options["eps"]
    return _plus_quotient(value, state["exp_avg"], scale, -options["lr"] / first), state


def _nadam(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    state, _, second = _moments(gradient, state, options)
    lr, step, (beta, _) = options["lr"], state["step"], options["betas"]
    now, later = (beta * (1 - 0.5 * 0.96 ** (t * options["momentum_decay"])) for t in (step, step + 1))
    # torch rounds the product of the momenta to its own precision at every step, and computes with it in double.
    product = state["mu_product"]
    state["mu_product"] = (product * now).to(product.dtype)
    past = state["mu_product"].double()
    scale = _root(state["exp_avg_sq"] / second) + options["eps"]
    value = _plus_quotient(value, gradient, scale, -lr * (1 - now) / (1 - past))
    return _plus_quotient(value, state["exp_avg"], scale, -lr * later / (1 - past * later)), state


def _radam(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    state, first, second = _moments(gradient, state, options)
    step, decay = state["step"], options["betas"][1]
    limit = 2 / (1 - decay) - 1
    length = limit - 2 * step * decay**step / second
    rectified = length > 5
    # Where the length is too short its root is not needed; 6 keeps the root, and its derivative, finite.
    limit, length = _where(rectified, limit, 6.0), _where(rectified, length, 6.0)
    rectification = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5
    scale = _where(rectified, _root(state["exp_avg_sq"]) + options["eps"], 1.0)
    factor = _where(rectified, rectification * second**0.5, 1.0)
    return value - state["exp_avg"] / first * options["lr"] * (factor / scale), state


def _rmsprop(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    alpha, state = options["alpha"], dict(state)
    variance = state["square_avg"] = _mean_square(state["square_avg"], gradient, alpha)
    if options["centered"]:
        mean = state["grad_avg"] = _mean(state["grad_avg"], gradient, alpha)
        variance = torch.addcmul(variance, mean, mean, value=-1)
    scale = _root(variance) + options["eps"]
    if not matters(options["momentum"]):
        return _plus_quotient(value, gradient, scale, -options["lr"]), state
    velocity = state["momentum_buffer"] = state["momentum_buffer"] * options["momentum"] + gradient / scale
    return _plus(value, velocity, -options["lr"]), state


def _adagrad(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    state = {"step": state["step"] + 1, "sum": torch.addcmul(state["sum"], gradient, gradient)}
    rate = options["lr"] / (1 + (state["step"] - 1) * options["lr_decay"])
    return _plus_quotient(value, gradient, _root(state["sum"]) + options["eps"], -rate), state


def _adadelta(value: Tensor, gradient: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    rho, eps = options["rho"], options["eps"]
    squares = _mean_square(state["square_avg"], gradient, rho)
    delta = _root(state["acc_delta"] + eps) / _root(squares + eps) * gradient
    state = {"square_avg": squares, "acc_delta": _mean_square(state["acc_delta"], delta, rho)}
    return _plus(value, delta, -options["lr"]), state


def _moments(gradient: Tensor, state: State, options: Options) -> tuple[State, Number, Number]:
    """The state with both moments of Adam one step on, and the two bias corrections 1 − β^t."""
    first, second = options["betas"]
    step = state["step"] + 1
    moments = {
        "step": step,
        "exp_avg": _mean(state["exp_avg"], gradient, first),
        "exp_avg_sq": _mean_square(state["exp_avg_sq"], gradient, second),
    }
    return {**state, **moments}, 1 - first**step, 1 - second**step


def _mean(old: Tensor, new: Tensor, decay: Number) -> Tensor:
    return _plus(old, new - old, 1 - decay) if isinstance(decay, Tensor) else torch.lerp(old, new, 1 - decay)


def _mean_square(old: Tensor, new: Tensor, decay: Number) -> Tensor:
    if isinstance(decay, Tensor):
        return old * decay + (1 - decay) * new * new
    return torch.addcmul(old * decay, new, new, value=1 - decay)


def _plus(left: Tensor, right: Tensor, weight: Number) -> Tensor:
    return left + weight * right if isinstance(weight, Tensor) else torch.add(left, right, alpha=weight)


def _plus_quotient(left: Tensor, above: Tensor, below: Tensor, weight: Number) -> Tensor:
    if isinstance(weight, Tensor):
        return left + weight * (above / below)
    return torch.addcdiv(left, above, below, value=weight)


def _where(condition: bool | Tensor, left: Any, right: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, left, right)
    return left if condition else right


def _root(squares: Tensor) -> Tensor:
    """√x with the derivative 0 at x = 0, where a weight without a gradient would turn everything into NaN.

    It is the right one: the root is divided into a mean that is 0 as well, and so has no share in the derivative.
    """
    if not squares.requires_grad:
        return squares.sqrt()
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def _zeros(value: Tensor, *names: str) -> State:
    return {"step": 0, **{name: torch.zeros_like(value) for name in names}}


def _adam_start(value: Tensor, options: Options) -> State:
    maximum = ["max_exp_avg_sq"] if options.get("amsgrad") else []
    return _zeros(value, "exp_avg", "exp_avg_sq", *maximum)


def _nadam_start(value: Tensor, options: Options) -> State:
    precise = torch.get_default_dtype() == torch.float64
    product = torch.tensor(1.0, dtype=torch.float64 if precise else torch.float32)
    return {**_adam_start(value, options), "mu_product": product}


def _rmsprop_start(value: Tensor, options: Options) -> State:
    velocity = ["momentum_buffer"] if matters(options["momentum"]) else []
    return _zeros(value, "square_avg", *velocity, *(["grad_avg"] if options["centered"] else []))


def _rule(update: Any, begin: Any, options: str) -> Rule:
    return Rule(update, begin, frozenset(options.split()))


_ADAM = _rule(_adam, _adam_start, "betas eps amsgrad decoupled_weight_decay")
RULES: Mapping[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: _rule(_sgd, lambda value, options: {}, "momentum dampening nesterov"),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _rule(_nadam, _nadam_start, "betas eps momentum_decay decoupled_weight_decay"),
    torch.optim.RAdam: _rule(_radam, _adam_start, "betas eps decoupled_weight_decay"),
    torch.optim.RMSprop: _rule(_rmsprop, _rmsprop_start, "alpha eps momentum centered"),
    # Adagrad fills its state when it is built, and so has put initial_accumulator_value there already.
    torch.optim.Adagrad: _rule(_adagrad, lambda v, _: _zeros(v, "sum"), "eps lr_decay initial_accumulator_value"),
    torch.optim.Adadelta: _rule(_adadelta, lambda v, _: _zeros(v, "square_avg", "acc_delta"), "rho eps"),
}
"""By exact type: a subclass may do anything."""
