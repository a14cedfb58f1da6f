"""From an optimizer of ``torch.optim`` to a differentiable step, or a refusal that names what cannot be followed.

The optimizer is only read: its type, its parameter groups and its state say what a step is, ``rules`` computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.inner_optimizers.rules import RULES, Options, Rule, State, directed, matters
from lightning_gp.types import InnerOptimizer, Parameters

# How torch computes, not what: results differ by rounding at most. `initial_lr` and `param_names` are notes.
_IRRELEVANT = frozenset(["params", "foreach", "fused", "capturable", "differentiable", "initial_lr", "param_names"])
_COMMON = frozenset(["lr", "weight_decay", "maximize"])


class _Plan(NamedTuple):
    """What happens to one parameter: a rule, its options, and the state to begin from."""

    rule: Rule
    options: Options
    state: State


def differentiable_step(
    build: InnerOptimizer, theta: Parameters, create_graph: bool
) -> Callable[[Parameters, Parameters], Parameters]:
    """The step θ, g -> θ' of a ``torch.optim`` optimizer, differentiable, in all environments at once.

    The path is that of the optimizer itself in each environment. Gradients flow to θ, to g, to options that are
    tensors (``lr``, ``betas``, ``weight_decay``, ...) and to a state that the optimizer was given before its first
    step. Where a running mean of squares is 0 (no gradient so far, as in a dead ReLU unit) they are finite.

    Known are SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad and Adadelta with all their options, in one or several
    parameter groups; a parameter in no group stays where it is. ``foreach``, ``fused``, ``capturable`` and
    ``differentiable`` change no value and are ignored.

    Args:
        build: builds the optimizer from the list of parameters, which have the shapes of ``theta``.
        theta: tensors (E, *shape), or (*shape), by name; only names, shapes, dtypes and devices matter here.
        create_graph: keep the steps differentiable.

    Returns:
        ``update(theta, gradient)``: the parameters after the next step. It keeps the optimizer's state, and can be
        traced by ``torch.compile``.

    Raises:
        TypeError: if ``build`` is no function.
        ValueError: if it builds another optimizer (a subclass too), one with hooks or a ``step`` of its own, one over
            other tensors, or one with an option or a state that cannot be followed; named in the message.

    Example:
        >>> theta = {"w": torch.ones(1, 2, requires_grad=True)}
        >>> update = differentiable_step(lambda values: torch.optim.SGD(values, lr=0.5), theta, create_graph=True)
        >>> update(theta, {"w": 2 * theta["w"]})["w"].tolist()
        [[0.0, 0.0]]
    """
    checks.function(inner_optimizer=build)
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    plans = _plans(build(list(leaves.values())), leaves)
    states = {name: plan.state for name, plan in plans.items()}

    def move(name: str, value: Tensor, gradient: Tensor) -> Tensor:
        if name not in plans:
            return value
        rule, options, _ = plans[name]
        moved, states[name] = rule.update(*directed(_real(value), _real(gradient), options), states[name], options)
        return torch.view_as_complex(moved) if value.is_complex() else moved

    def update(theta: Parameters, gradient: Parameters) -> Parameters:
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            return {name: move(name, value, gradient[name]) for name, value in theta.items()}

    return update


def check_inner_optimizer(build: InnerOptimizer, parameters: Parameters) -> None:
    """Refuses an inner optimizer before training, as ``differentiable_step`` would at the first step.

    Args:
        build: builds the optimizer from a list of tensors; it is called once, on copies.
        parameters: tensors (*shape) by name: what the inner loop adapts.

    Raises:
        TypeError: if ``build`` is no function.
        ValueError: as ``differentiable_step``.

    Example:
        >>> check_inner_optimizer(torch.optim.Adam, {"w": torch.ones(2)})
        >>> check_inner_optimizer(torch.optim.LBFGS, {"w": torch.ones(2)})
        Traceback (most recent call last):
        ...
        ValueError: inner_optimizer builds a torch.optim.lbfgs.LBFGS, which has no differentiable step; use SGD, Adam, \
AdamW, NAdam, RAdam, RMSprop, Adagrad or Adadelta of torch.optim itself.
    """
    copies = {name: value.detach().clone().unsqueeze(0) for name, value in parameters.items()}
    differentiable_step(build, copies, create_graph=False)


def _plans(optimizer: torch.optim.Optimizer, leaves: Parameters) -> dict[str, _Plan]:
    kind = type(optimizer)
    if kind not in RULES:
        *known, last = (each.__name__ for each in RULES)
        raise ValueError(
            f"inner_optimizer builds a {kind.__module__}.{kind.__qualname__}, which has no differentiable step; use "
            f"{', '.join(known)} or {last} of torch.optim itself."
        )
    if "step" in vars(optimizer) or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            f"inner_optimizer builds a {kind.__name__} whose step was changed by a hook, a scheduler or an assignment, "
            "which the inner loop would not run. Build the optimizer alone."
        )
    names = {id(leaf): name for name, leaf in leaves.items()}
    plans = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"inner_optimizer builds a {kind.__name__} over a tensor of shape {tuple(parameter.shape)} that it "
                    "was not given. Build a new optimizer at every call, from the list of tensors in the argument."
                )
            options = _options(kind, group, parameter.device)
            state = _state(kind, optimizer.state.get(parameter, {}), _real(parameter.detach()), options)
            plans[names[id(parameter)]] = _Plan(RULES[kind], options, state)
    return plans


def _options(kind: type[torch.optim.Optimizer], group: dict[str, Any], device: torch.device) -> Options:
    """The options of one parameter group: numbers, flags, and tensors without axes."""
    followed = _COMMON | RULES[kind].options
    unknown = sorted(group.keys() - followed - _IRRELEVANT)
    if unknown:
        raise ValueError(
            f"inner_optimizer: the differentiable step of {kind.__name__} does not know the option "
            f"{', '.join(f'{name}={group[name]!r}' for name in unknown)}; it follows {', '.join(sorted(followed))}."
        )

    def scalar(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.numel() != 1:
            raise ValueError(f"inner_optimizer: {name} of shape {tuple(value.shape)} must have one element.")
        return value.reshape(()).to(device)

    # Until torch 2.6, AdamW said by its type alone that its weight decay is decoupled.
    options: dict[str, Any] = {"decoupled_weight_decay": kind is torch.optim.AdamW}
    for name in followed & group.keys():
        several = isinstance(group[name], (tuple, list))
        options[name] = tuple(scalar(name, each) for each in group[name]) if several else scalar(name, group[name])
    if kind is torch.optim.SGD and isinstance(options["momentum"], Tensor) and matters(options["dampening"]):
        raise ValueError(
            "inner_optimizer: SGD jumps where momentum goes to 0 if dampening is not 0, so momentum can be a tensor "
            "only with dampening=0."
        )
    return options


def _state(kind: type[torch.optim.Optimizer], given: State, value: Tensor, options: Options) -> State:
    """The state to begin from: the optimizer's own, the same in all environments unless it has their axis, or fresh."""
    state = RULES[kind].begin(value, options)
    missing = sorted(state.keys() - given.keys())
    if given and missing:
        raise ValueError(f"inner_optimizer: the state of {kind.__name__} lacks {', '.join(missing)}.")
    for name, entry in given.items():
        if name == "step":
            state[name] = int(entry)
        elif name == "mu_product" or entry is None:
            state[name] = entry
        elif _real(entry).shape not in (value.shape, value.shape[1:]):
            raise ValueError(
                f"inner_optimizer: {name} in the state of {kind.__name__} has shape {tuple(entry.shape)}, but the "
                f"parameter (environments first) has {tuple(value.shape)}; give it that shape, or one without the "
                "first axis."
            )
        else:
            state[name] = _real(entry).expand(value.shape)
    return state


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs, as torch's optimizers take them."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
