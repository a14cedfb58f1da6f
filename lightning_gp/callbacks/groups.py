"""Groups of parameters by their names, for numbers of parts of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

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
