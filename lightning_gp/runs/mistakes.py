"""A user's mistake on a command line in a line or two, with what may have been meant."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from lightning_gp.runs.synopsis import names

INDENT = 24 * " "
"""Where argparse puts the descriptions of options."""
KINDS = ("modules", "datamodules", "networks", "callbacks")


def explained(message: str, parser: Any) -> str:
    """The parser's message without what repeats the whole configuration.

    Args:
        message: of jsonargparse.
        parser: that gave it.

    Returns:
        The mistake and, where a known name is close, that name; other messages as they are.
    """
    option = re.search(r"class_path '([\w.]+)':.*?Option '([\w.]+)' is not accepted", message, re.DOTALL)
    if option:
        path, name = option.groups()
        known = options_of_class(path)
        return f"{path.rpartition('.')[2]} has no option {name!r}.{meant(name, known)} It has: {', '.join(known)}."
    missing = re.search(r"[Uu]nrecogni[sz]ed arguments?: (--?[\w.+-]+)|Key '?\"?([\w.]+)'?\"? is not expected", message)
    if missing:
        word = missing[1] or f"--{missing[2]}"
        known = [option for action in parser._actions for option in action.option_strings]
        known += ["--resume"] * (word != "--resume")
        return f"There is no option {word}.{meant(word.partition('=')[0], known)} --help shows what there is."
    path_error = re.search(r"Expected a dot import path string: (\w+)", message)
    if path_error:
        name = path_error[1]
        known = [each for kind in KINDS for each, _ in names(kind)]
        return (
            f"{name!r} is no class that is known by its name.{meant(name, known)} Give a name of `lightning-gp "
            "algorithms`, `networks`, `data` or `callbacks`, or the import path of your own class, such as mine.Model."
        )
    return message


def meant(name: str, known: Iterable[str]) -> str:
    """`` Did you mean …?``, if a known name is close.

    Example:
        >>> meant("inner_rate", ["inner_lr", "inner_steps"]), meant("x", ["inner_lr"])
        (" Did you mean 'inner_lr'?", '')
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def options_of_class(path: str) -> list[str]:
    """The arguments of all constructors of a class."""
    home, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(home), name)
    if not inspect.isclass(kind):
        return list(inspect.signature(kind).parameters)
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            own = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
            found.update(dict.fromkeys(own[1:]))
            if all(each.kind is not each.VAR_KEYWORD for each in parameters):
                break
    return list(found)


def shortened(text: str) -> str:
    r"""The help of a class, in which lists of known subclasses name those of this package and no others of torch.

    Example:
        >>> shortened("(type: Module, known subclasses: torch.nn.Linear, lightning_gp.networks.Conv4)")
        '(type: Module, such as Conv4)'
        >>> shortened("(type: Tensor, known subclasses: torch.Tensor,\n torch.nn.Buffer)")
        '(type: Tensor)'
    """

    def ours(found: re.Match[str]) -> str:
        paths = re.sub(r"\s+", "", found[1]).split(",")
        for kinds in ("lightning_gp.networks.", "torch.optim.lr_scheduler.", "torch.optim."):
            known = [path.rpartition(".")[2] for path in paths if path.startswith(kinds)]
            if known:
                listed = textwrap.fill(
                    f"such as {', '.join(known)})", 100, initial_indent="    ", subsequent_indent=INDENT
                )
                return f", {listed.strip()}"
        return ")"

    return re.sub(r",\s+known\s+subclasses:\s+(.*?)\)", ours, text, flags=re.DOTALL)
