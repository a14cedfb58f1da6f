"""Public names that are imported when they are first used, and that type checkers and editors know all the same."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names live in other modules.

    Which name lives where is said once, by the imports of the stub ``__init__.pyi``, which is what type checkers read;
    a star stands for all public names of another such package.
    A package is cheap to import this way, and a broken or missing dependency hurts only those who use it.

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``.
    """
    homes: dict[str, str] = {}
    for statement in ast.parse(Path(file).with_suffix(".pyi").read_text("utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            home = str(statement.module)
            named = [alias.name for alias in statement.names]
            homes.update(dict.fromkeys(importlib.import_module(home).__all__ if named == ["*"] else named, home))

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return getattribute, directory, sorted(homes)
