"""Groups of parameters by their names, for numbers of parts of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from lightning_gp._lightning import LightningModule

Grouping: TypeAlias = int | Callable[[str], str]
"""How many leading parts of a parameter's name make its group, or a function of the name."""


def check_groups(groups: Grouping | None) -> None:
    """Refuses what is no grouping.

    Args:
        groups: what the user gave.

    Raises:
        ValueError: if it is neither a number of name parts nor a function.
    """
    number = isinstance(groups, int) and not isinstance(groups, bool) and groups >= 1
    if groups is not None and not callable(groups) and not number:
        raise ValueError(f"groups={groups!r} must be a number of name parts of at least 1, or a function of names.")


def grouped(names: Iterable[str], groups: Grouping | None) -> dict[str, list[str]]:
    """Names of parameters by group; none for None.

    Example:
        >>> grouped(["body.0.weight", "body.0.bias", "head.weight"], 1)
        {'body': ['body.0.weight', 'body.0.bias'], 'head': ['head.weight']}
    """
    found: dict[str, list[str]] = {}
    if groups is not None:
        for name in names:
            group = groups(name) if callable(groups) else ".".join(name.split(".")[:groups])
            found.setdefault(group, []).append(name)
    return found


def parameters_by_name(optimizer: Optimizer, module: LightningModule) -> dict[str, Tensor]:
    """What an optimizer changes, under the module's names; tensors that only the optimizer knows are numbered.

    Args:
        optimizer: a torch optimizer.
        module: whose parameters these are.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names.get(id(parameter), f"optimizer.{i}.{k}"): parameter
        for i, group in enumerate(optimizer.param_groups)
        for k, parameter in enumerate(group["params"])
    }
