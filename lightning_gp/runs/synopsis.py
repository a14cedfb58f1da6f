"""What there is and how it is called, read from the source: nothing heavy is imported to say so."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
LISTS = ("Sequence", "list", "tuple")


class Option(NamedTuple):
    """An argument of a function as an option of a command line."""

    name: str
    kind: str
    default: str | None
    meaning: str


def help_of(home: str, name: str, prog: str, skip: Sequence[str] = (), more: str = "") -> str:
    """The help of a command that is a function (``runs.command``), or the constructor of a class.

    Args:
        home: the module below ``lightning_gp``, such as ``"experiments.demo"``.
        name: of the function or class, or of a dict of functions by name.
        prog: the command.
        skip: arguments that are no options.
        more: said at the end.

    Example:
        >>> print(help_of("experiments.demo", "demo", "lightning-gp demo").splitlines()[0])
        usage: lightning-gp demo [options]
    """
    tree, node = _found(home, name)
    if isinstance(node, ast.Dict):
        rows = [(str(ast.literal_eval(key)), str(ast.unparse(value))) for key, value in _items(node)]
        lines = [f"  {prog} {key:10} {_first_line(_found(home, value)[1])}" for key, value in rows]
        return "\n".join([*lines, "--help behind one says more.", ""])
    text = (ast.get_docstring(node) or "").replace("``", "")  # type: ignore[arg-type]
    formatter = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=re.split(r"\n\n(?:Args|Raises|Returns|Attributes|Example):", text)[0],
        epilog=more or "true need not be written, as in --quick; elements of a list follow one another.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    for option in _options(home, tree, node):
        if option.name not in skip:
            default = " (required)" if option.default is None else f" (default: {option.default})"
            formatter.add_argument(
                f"--{option.name}", metavar=option.kind, help=(option.meaning + default).replace("%", "%%")
            )
    return formatter.format_help()


def names(kind: str) -> Iterator[tuple[str, str]]:
    """Each public class of a subpackage and the first line of its docstring.

    Args:
        kind: ``"networks"``, ``"modules"``, ``"datamodules"`` or ``"callbacks"``.

    Example:
        >>> dict(names("networks"))["Conv4"]
        'Four blocks of 3×3 convolution, batch normalisation, ReLU and downsampling, then a linear head.'
    """
    for statement in ast.parse((PACKAGE / kind / "__init__.pyi").read_text("utf-8")).body:
        if not isinstance(statement, ast.ImportFrom):
            continue
        for alias in statement.names:
            _, node = _found(str(statement.module).removeprefix("lightning_gp."), alias.name)
            if isinstance(node, ast.ClassDef) and (kind != "datamodules" or "DataModule" in ast.unparse(node.bases[0])):
                yield alias.name, _first_line(node)


def _found(home: str, name: str) -> tuple[ast.Module, ast.AST]:
    """The definition of a name, followed through imports of this package; and the tree it stands in."""
    tree = ast.parse((PACKAGE / f"{home.replace('.', '/')}.py").read_text("utf-8"))
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name == name:
            return tree, statement
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, ast.Dict):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name) and target.id == name:
                return tree, statement.value
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("lightning_gp."):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _found(str(statement.module).removeprefix("lightning_gp."), alias.name)
    raise LookupError(f"lightning_gp.{home} defines no {name}")


def _options(home: str, tree: ast.Module, node: ast.AST) -> Iterator[Option]:
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        constructor = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not constructor:  # a dataclass: its fields are the options
            for field in fields:
                yield _option(ast.unparse(field.target), field.annotation, field.value, _meanings(text))
            return
        node = constructor[0]
    assert isinstance(node, ast.FunctionDef)
    arguments = [each for each in node.args.args if each.arg != "self"]
    values: list[ast.expr | None] = [None] * (len(arguments) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(arguments, values, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    for argument, value in pairs:
        record = _record(home, argument.annotation)
        if record is not None:
            yield from _options(home, *record)
        else:
            yield _option(argument.arg, argument.annotation, value, _meanings(text))


def _record(home: str, annotation: ast.expr | None) -> tuple[ast.Module, ast.ClassDef] | None:
    """The dataclass of this package that an annotation names, if it does."""
    if not isinstance(annotation, ast.Name):
        return None
    try:
        tree, node = _found(home, annotation.id)
    except LookupError:
        return None
    return (tree, node) if isinstance(node, ast.ClassDef) and node.decorator_list else None


def _option(name: str, annotation: ast.expr | None, value: ast.expr | None, meanings: dict[str, str]) -> Option:
    kind = ast.unparse(annotation) if annotation is not None else ""
    kind = re.sub(r"Literal\[(.*)\]", lambda found: "{" + found[1].replace("'", "").replace(", ", ",") + "}", kind)
    kind = re.sub(rf"(?:{'|'.join(LISTS)})\[(\w+)(?:, \.\.\.)?\]", r"\1 …", kind).replace(" | None", "")
    default = None if value is None else re.sub(r"^Path\((.*)\)$", r"\1", ast.unparse(value)).strip("'\"")
    return Option(name, kind.upper() if re.fullmatch(r"\w+( …)?", kind) else kind, default, meanings.get(name, ""))


def _meanings(text: str) -> dict[str, str]:
    """The descriptions in the section Args or Attributes of a docstring."""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\w|\Z)", text, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.DOTALL | re.MULTILINE)
    return {name: " ".join(meaning.replace("``", "").split()) for name, meaning in found}


def _items(node: ast.Dict) -> list[tuple[ast.expr, ast.expr]]:
    return [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]


def _first_line(node: ast.AST) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].replace("``", "")  # type: ignore[arg-type]
