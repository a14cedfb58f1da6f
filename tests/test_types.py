"""How few arguments are of any type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_gp"
AT_MOST = {"callbacks": 0.05, "trainability": 0.05, "tuning": 0.05}
"""Package → share of its arguments that may be ``Any`` or without a type."""


def arguments(package: str) -> list[tuple[str, bool]]:
    """Every argument of a package as ``file:line name``, and whether its type is ``Any`` or missing."""
    found = []
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
            for argument in every:
                if argument.arg not in ("self", "cls"):
                    kind = "Any" if argument.annotation is None else ast.unparse(argument.annotation)
                    found.append((f"{path.name}:{argument.lineno} {argument.arg}", kind in ("Any", "Any | None")))
    return found


@pytest.mark.parametrize("package", AT_MOST)
def test_few_arguments_are_of_any_type(package):
    found = arguments(package)
    untyped = [name for name, is_any in found if is_any]
    assert len(found) > 30
    assert len(untyped) <= AT_MOST[package] * len(found), f"{len(untyped)} of {len(found)}: {', '.join(untyped)}"
