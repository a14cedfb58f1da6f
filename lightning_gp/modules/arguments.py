"""What a module was built with: which arguments a checkpoint can hold, and a note of those it cannot."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp.hyperparameters import plain

UNSAVED = ("network", "criterion", "optimizer", "lr_scheduler", "inner_optimizer")
"""Arguments that are no hyperparameters even where they are None."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, torch.dtype, torch.device)


def savable(value: Any) -> bool:
    """Whether a checkpoint with this value can be read by the loader that runs no code."""
    if isinstance(value, nn.Parameter):
        return False
    value = plain(value)
    if isinstance(value, dict):
        return all(savable(each) for pair in value.items() for each in pair)
    if type(value) in (list, tuple, set):
        return all(map(savable, value))
    return isinstance(value, Tensor) or type(value) in PLAIN


def unsaved(name: str, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether an argument is compared by its description: no hyperparameter, or one only on the command line."""
    return name in UNSAVED or name not in hyperparameters


def arguments_of(module: Any) -> dict[str, Any]:
    """The arguments of all constructors of ``module`` that are running, by name; those of the most special class win.

    To be called from within ``__init__``.
    """
    found: dict[str, Any] = {}
    frame: types.FrameType | None = inspect.currentframe()
    while frame is not None:
        code, frame = frame, frame.f_back
        if code.f_code.co_name != "__init__":
            continue
        names, values = inspect.getargvalues(code)[0], code.f_locals
        if names and values.get(names[0]) is module:
            keywords = inspect.getargvalues(code).keywords
            keyword_only = code.f_code.co_varnames[len(names) : len(names) + code.f_code.co_kwonlyargcount]
            found.update({name: values[name] for name in (*names[1:], *keyword_only) if name in values})
            found.update(values.get(keywords, {}) if keywords else {})
    return found


def given(module: Any) -> dict[str, str]:
    """A description of each argument, besides the network, that is not its default; as for ``arguments_of``."""
    defaults: dict[str, Any] = {}
    for kind in type(module).__mro__:
        for name, parameter in inspect.signature(vars(kind).get("__init__", lambda: None)).parameters.items():
            defaults.setdefault(name, parameter.default)
    values = arguments_of(module)
    return {
        name: describe(value)
        for name, value in values.items()
        if name != "network" and not _same(value, defaults.get(name, inspect.Parameter.empty))
    }


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and type(value) in PLAIN[:7] and value == default)


def describe(value: Any) -> str:
    """A value in words that stay the same in the next run, such as ``torch.optim.sgd.SGD(…, lr=0.1)``.

    What has no name of its own, such as a lambda, is followed by the Python version and a digest of its code.

    Example:
        >>> describe(functools.partial(torch.optim.SGD, lr=0.1))
        'torch.optim.sgd.SGD(…, lr=0.1)'
    """
    if savable(value):
        return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(plain(value))
    if isinstance(value, functools.partial):
        words = [
            "…",
            *map(describe, value.args),
            *(f"{name}={describe(each)}" for name, each in value.keywords.items()),
        ]
        return f"{describe(value.func)}({', '.join(words)})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {describe(each)}" for name, each in value.items()) + "}"
    if isinstance(value, types.MethodType):
        return f"{describe(value.__func__)} of {describe(value.__self__)}"
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', '')}"
    if isinstance(value, types.FunctionType) and ("<" in name or name.startswith("__main__")):
        version = ".".join(map(str, sys.version_info[:2]))
        return f"{name} [Python {version}, {hashlib.sha256(_code(value).encode()).hexdigest()[:12]}]"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return name
    settings = {key: each for key, each in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    words = [f"{key}={describe(each)}" for key, each in sorted(settings.items()) if savable(each) and key != "training"]
    return f"{type(value).__module__}.{type(value).__qualname__}({', '.join(words)})"


def _code(function: types.FunctionType) -> str:
    def constant(value: Any) -> str:
        if isinstance(value, types.CodeType):
            return f"{value.co_code!r} {value.co_names} {[constant(each) for each in value.co_consts]}"
        return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

    cells = []
    for cell in function.__closure__ or ():
        held = cell.cell_contents
        cells.append(describe(held) if held is not function else "itself")
    return f"{constant(function.__code__)} {describe(function.__defaults__)} {cells}"


def differ(one: str, other: str) -> bool:
    """Whether two descriptions are of different things, as far as they tell."""
    digest = re.compile(r" \[Python ([\d.]+), \w+\]")
    if one == other:
        return False
    versions = digest.findall(one), digest.findall(other)
    if versions[0] and versions[1] and versions[0] != versions[1]:
        return False  # other bytecode of what may be the same text
    return re.sub(r"[\w.<>]+ \[", "[", one) != re.sub(r"[\w.<>]+ \[", "[", other)
