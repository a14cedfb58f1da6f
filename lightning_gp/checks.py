"""One room for what an argument must be: each check names the argument, its value and what is allowed.

Counts are integers (numpy's too), never booleans, text or fractions; numbers are finite unless said otherwise. What is
of the wrong type is a ``TypeError``, what is out of range a ``ValueError``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, SupportsFloat


def whole(minimum: int = 1, *, hint: str = "", **values: Any) -> None:
    """Refuses what is no whole number of at least ``minimum``.

    Args:
        minimum: the smallest value that is allowed.
        hint: what to do instead, for the message.
        **values: by name of the argument.

    Raises:
        TypeError: naming an argument that is no integer.
        ValueError: naming an argument that is too small.

    Example:
        >>> whole(1, inner_steps=3)
        >>> whole(1, inner_steps=0)
        Traceback (most recent call last):
        ...
        ValueError: inner_steps=0 must be a whole number of at least 1.
    """
    for name, value in values.items():
        found = _integer(value)
        if found is None or found < minimum:
            kind = TypeError if found is None else ValueError
            raise kind(f"{name}={value!r} must be a whole number of at least {minimum}{hint and f'; {hint}'}.")


def optional_whole(minimum: int = 1, *, hint: str = "", **values: Any) -> None:
    """As ``whole``, but None is allowed."""
    whole(minimum, hint=hint, **{name: value for name, value in values.items() if value is not None})


def number(
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    *,
    hint: str = "",
    **values: Any,
) -> None:
    """Refuses what is no finite number in the range.

    Args:
        minimum: the smallest value that is allowed, if there is one.
        above: a bound that must be exceeded, if there is one.
        maximum: the largest value that is allowed, if there is one.
        hint: what to do instead, for the message.
        **values: by name of the argument.

    Raises:
        TypeError: naming an argument that is no number.
        ValueError: naming an argument that is not finite or out of range.

    Example:
        >>> number(minimum=0, penalty_weight=1.5)
        >>> number(above=0, outer_lr=0.0)
        Traceback (most recent call last):
        ...
        ValueError: outer_lr=0.0 must be a finite number above 0.
    """
    bounds = [("of at least", minimum), ("above", above), ("at most", maximum)]
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    for name, value in values.items():
        found = _number(value)
        message = f"{name}={value!r} must be a finite number{wanted and f' {wanted}'}{hint and f'; {hint}'}."
        if found is None:
            raise TypeError(message)
        small = (minimum is not None and found < minimum) or (above is not None and found <= above)
        if not math.isfinite(found) or small or (maximum is not None and found > maximum):
            raise ValueError(message)


def optional_number(
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    *,
    hint: str = "",
    **values: Any,
) -> None:
    """As ``number``, but None is allowed."""
    number(minimum, above, maximum, hint=hint, **{name: value for name, value in values.items() if value is not None})


def choice(allowed: Collection[Any], *, hint: str = "", **values: Any) -> None:
    """Refuses what is not among the allowed values.

    Args:
        allowed: of the same type as what is given.
        hint: what they mean, for the message.
        **values: by name of the argument.

    Raises:
        ValueError: naming the argument and what is allowed.

    Example:
        >>> choice(("kl", "gaussian"), divergence="KL")
        Traceback (most recent call last):
        ...
        ValueError: divergence='KL' is unknown; use one of 'kl', 'gaussian'.
    """
    for name, value in values.items():
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise ValueError(
                f"{name}={value!r} is unknown; use one of {', '.join(map(repr, allowed))}{hint and f'; {hint}'}."
            )


def flag(**values: Any) -> None:
    """Refuses what is neither True nor False.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r} must be True or False.")


def text(**values: Any) -> None:
    """Refuses what is no text.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{name}={value!r} must be text.")


def function(**values: Any) -> None:
    """Refuses what is no function where one is needed.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if not callable(value):
            raise TypeError(
                f"{name}={value!r} is of type {type(value).__name__}; give a function, such as "
                "torch.nn.functional.mse_loss for criterion, or for optimizer torch.optim.Adam or "
                "lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )


def first_of(names: Sequence[str], count: int = 5) -> str:
    """The first of some names, for an error, and how many more there are.

    Example:
        >>> first_of(["a", "b", "c"], count=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "Tensor"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, str, bytes, complex)) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
