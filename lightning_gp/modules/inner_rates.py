"""Inner learning rates: one number, one per parameter, or learned with the initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gp import checks
from lightning_gp.types import RateSchedule

InnerLR: TypeAlias = float | Mapping[str, float]
Granularity: TypeAlias = Literal["scalar", "parameter", "element", "step"]


class InnerRates(nn.Module):
    """The inner rate of each adapted parameter.

    Args:
        inner_lr: one rate, or one per parameter name or name prefix (the longest match counts).
        parameters: the adapted parameters by name; learned rates take their shapes and precision from them.
        learned: train the rates with the outer optimizer (Z. Li et al., "Meta-SGD", 2017).
        per: granularity of learned rates: one ``"scalar"``, one per ``"parameter"``, one per ``"element"``, or one per
            parameter and inner ``"step"`` (A. Antoniou et al., "How to train your MAML", 2019).
        steps: inner steps in training; with a rate for each, further steps take the last.

    Raises:
        ValueError: if a rate is negative or not finite, a name is unknown, or a parameter is left without a rate.

    Example:
        >>> import torch
        >>> head = {"head.weight": torch.zeros(1, 2), "head.bias": torch.zeros(1)}
        >>> rates = InnerRates({"head": 0.1, "head.bias": 0.2}, head)
        >>> rates()
        {'head.weight': 0.1, 'head.bias': 0.2}
    """

    def __init__(
        self,
        inner_lr: InnerLR,
        parameters: Mapping[str, Tensor],
        learned: bool = False,
        per: Granularity = "parameter",
        steps: int = 1,
    ) -> None:
        super().__init__()
        if per not in ("scalar", "parameter", "element", "step"):
            raise ValueError(f"inner_lr_per={per!r} is unknown; use 'scalar', 'parameter', 'element' or 'step'.")
        if learned and per == "scalar" and isinstance(inner_lr, Mapping):
            raise ValueError(
                "inner_lr_per='scalar' learns one rate; give inner_lr as one number, or another granularity."
            )
        self.given = inner_lr
        self.initial = _resolved(inner_lr, list(parameters))
        self.rates = nn.ParameterDict()
        self.steps = steps if learned and per == "step" else 0
        if learned and per == "scalar":
            name, rate = next(iter(self.initial.items()))
            self.rates["all"] = nn.Parameter(parameters[name].new_tensor(rate))
        elif learned:
            for name, rate in self.initial.items():
                shape = {"element": parameters[name].shape, "step": (steps,)}.get(per, ())
                self.rates[name.replace(".", "/")] = nn.Parameter(parameters[name].new_full(shape, rate))

    @property
    def learned(self) -> bool:
        """Whether the outer optimizer trains the rates."""
        return len(self.rates) > 0

    def forward(self, names: Sequence[str] | None = None) -> dict[str, float | Tensor]:
        """The rate of each adapted parameter: numbers, or the learned tensors.

        Args:
            names: the parameters that are adapted now, layers having been frozen or thawed since; None for all.

        Raises:
            ValueError: if a parameter has no rate.
        """
        wanted = list(self.initial) if names is None else list(names)
        fresh = [name for name in wanted if name not in self.initial]
        if fresh and self.learned and "all" not in self.rates:
            raise ValueError(
                f"{fresh} have no learned rate, as they were frozen when the module was made; thaw them before, or "
                "leave learn_inner_lr False."
            )
        if fresh:
            self.initial.update(_resolved(self.given, fresh, strict=False))
        if not self.learned:
            return {name: self.initial[name] for name in wanted}
        if "all" in self.rates:
            return dict.fromkeys(wanted, self.rates["all"])
        return {name: self.rates[name.replace(".", "/")] for name in wanted}

    def schedule(self, names: Sequence[str] | None = None) -> RateSchedule:
        """What the inner loop takes: ``forward``, or that of each step where each has rates of its own.

        Args:
            names: see ``forward``.
        """
        rates = self.forward(names)
        if not self.steps:
            return rates
        stacks = {name: torch.as_tensor(rate) for name, rate in rates.items()}
        return tuple({name: stack[step] for name, stack in stacks.items()} for step in range(self.steps))

    def numbers(self) -> tuple[float, ...]:
        """The rate of each parameter as it was put in; learned ones start from there."""
        return tuple(self.initial.values())

    @torch.no_grad()
    def fill(self, rate: float) -> None:
        """Puts one number in for all parameters."""
        self.given = rate
        self.initial = dict.fromkeys(self.initial, rate)
        for learned in self.rates.values():
            learned.fill_(rate)


def _resolved(inner_lr: InnerLR, names: list[str], strict: bool = True) -> dict[str, float]:
    if not isinstance(inner_lr, Mapping):
        return dict.fromkeys(names, _checked("inner_lr", inner_lr))
    resolved: dict[str, tuple[int, float]] = {}
    for key, value in inner_lr.items():
        matches = [name for name in names if name == key or name.startswith(f"{key}.")]
        if strict and not matches:
            raise ValueError(
                f"inner_lr names {key!r}, which is no adapted parameter nor a prefix of one; there are {names}."
            )
        rate = _checked(f"inner_lr[{key!r}]", value)
        for name in matches:
            if len(key) >= resolved.get(name, (0, 0.0))[0]:
                resolved[name] = (len(key), rate)
    missing = [name for name in names if name not in resolved]
    if missing:
        raise ValueError(f"inner_lr gives no rate for {missing}; add these names or a prefix of them.")
    return {name: resolved[name][1] for name in names}


def _checked(name: str, rate: float) -> float:
    checks.number(
        minimum=0, hint="or a mapping from parameter names to such numbers (0 turns the inner loop off)", **{name: rate}
    )
    return float(rate)
