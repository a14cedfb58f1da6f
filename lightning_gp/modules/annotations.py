"""Annotations of constructors that a subclass left out, taken from its parents."""

from __future__ import annotations

import inspect
import typing
from typing import Any


def inherit_annotations(kind: type[Any]) -> None:
    """Gives each argument of ``kind.__init__`` without an annotation that of the same argument of a parent.

    The command line builds an argument by its annotation: without one, ``network`` of a user's subclass would be text.
    """
    if "__init__" not in vars(kind):
        return
    own = vars(kind)["__init__"]
    missing = [
        name
        for name, parameter in inspect.signature(own).parameters.items()
        if parameter.annotation is inspect.Parameter.empty and name not in ("self", "args", "kwargs")
    ]
    for parent in kind.__mro__[1:]:
        if not missing:
            return
        inherited = vars(parent).get("__init__")
        if inherited is None or parent is object or not set(missing) & set(inspect.signature(inherited).parameters):
            continue
        try:
            hints = typing.get_type_hints(inherited)
        except (NameError, TypeError):  # of a class whose annotations cannot be evaluated
            continue
        own.__annotations__.update({name: hints[name] for name in missing if name in hints})
        missing = [name for name in missing if name not in hints]
