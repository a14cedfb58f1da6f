"""Hooks that run even where a subclass overrides them and does not call ``super()``, as most of Lightning's allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Hook = TypeVar("Hook", bound=Callable[..., Any])


def always(hook: Hook) -> Hook:
    """Marks a hook of ours on which numbers depend: see ``complete_hooks``."""

    @wraps(hook)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("_hooks_run", set()).add(hook.__qualname__)
        return hook(self, *args, **kwargs)

    noted.always = hook.__qualname__  # type: ignore[attr-defined]
    return noted  # type: ignore[return-value]


def complete_hooks(kind: type) -> None:
    """Behind each override of a marked hook that did not call it, calls it.

    Args:
        kind: a new class; a mixin's hooks count as its own.
    """
    marked = {name for base in kind.__mro__ for name, value in vars(base).items() if hasattr(value, "always")}
    for name in marked:
        found = [vars(base)[name] for base in kind.__mro__ if name in vars(base)]
        if not hasattr(found[0], "always"):
            inherited = next(hook for hook in found if hasattr(hook, "always"))
            setattr(kind, name, always(_completed(found[0], inherited)))


def _completed(own: Callable[..., Any], inherited: Callable[..., Any]) -> Callable[..., Any]:
    key: str = inherited.always  # type: ignore[attr-defined]

    @wraps(own)
    def completed(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran: set[str] = self.__dict__.setdefault("_hooks_run", set())
        ran.discard(key)
        result = own(self, *args, **kwargs)
        if key not in ran:
            inherited(self, *args, **kwargs)
        return result

    return completed
