"""A command line from a function: its options are the arguments, their help is the docstring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from typing import Any, get_args, get_origin, get_type_hints

from lightning_gp.trainability.grid import seed_list


def command(
    function: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    prog: str,
    words: Sequence[str],
    also: Mapping[str, str] | None = None,
    rest: str | None = None,
    **fixed: Any,
) -> Any:
    """Calls ``function`` with the arguments that ``words`` spell (``spelled``).

    Args:
        function: annotated, with a docstring in google style. Dataclasses among its arguments give their fields as
            options. Of several functions by name, the first word chooses one.
        prog: the command, as help shows it.
        words: of the command line.
        also: other names of options.
        rest: the argument that takes the words that are no options of the function; None refuses them.
        **fixed: arguments that are no options.

    Returns:
        What the function returns.

    Raises:
        ValueError: if there is no function of that name.
        SystemExit: from the parser, after help or a message about an option.
    """
    import jsonargparse

    if isinstance(function, Mapping):
        name = words[0] if words else ""
        if name in ("-h", "--help"):
            shown = [f"  {prog} {key:10} {(each.__doc__ or '').splitlines()[0]}" for key, each in function.items()]
            print("\n".join([*shown, "--help behind one says more."]))
            return None
        if name not in function:
            raise ValueError(f"{prog} {name}: choose from {', '.join(function)}; --help says what each is.")
        return command(function[name], f"{prog} {name}", words[1:], also, rest, **fixed)
    description = (function.__doc__ or "").partition("\n\n    Args:")[0]
    epilog = "true need not be written, as in --quick; elements of a list follow one another, as in --seeds 0 1 2."
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    skip: set[str | int] = {*fixed, *([rest] if rest else [])}
    records: dict[str, Any] = {
        name: hint
        for name, hint in get_type_hints(function).items()
        if dataclasses.is_dataclass(hint) and name != "return"
    }
    parser.add_function_arguments(function, as_group=False, skip=skip | records.keys())
    for record in records.values():
        parser.add_class_arguments(record, as_group=False)
    first = [name for name, each in signature(function).parameters.items() if each.default is each.empty]
    first = [name for name in first if name not in skip | records.keys()]
    given, unknown = spelled(words, options_of(function, skip), also, first)
    missing = [f"--{name}" for name in first if not any(word.split("=")[0] == f"--{name}" for word in given)]
    if not rest or {"-h", "--help"} & {*words}:
        given += unknown
    elif unknown and not unknown[0].startswith("-"):
        parser.error(f"unrecognized arguments: {unknown[0]}")
    if missing and not {"-h", "--help"} & {*words}:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    arguments: dict[str, Any] = parser.instantiate(parser.parse_args(given)).as_dict()
    for name, record in records.items():
        fields = [field.name for field in dataclasses.fields(record)]
        arguments[name] = record(**{field: arguments.pop(field) for field in fields})
    return function(**arguments, **fixed, **({rest: unknown} if rest else {}))


def options_of(function: Callable[..., Any], skip: Collection[str | int] = ()) -> dict[str, Any]:
    """The types of a function's arguments by name; a dataclass among them gives those of its fields."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(function).items():
        if name not in {*skip, "return"}:
            found |= get_type_hints(hint) if dataclasses.is_dataclass(hint) else {name: hint}
    return found


def spelled(
    words: Sequence[str], options: Mapping[str, Any], also: Mapping[str, str] | None = None, first: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """A user's words as the parser wants them, ``--name=value`` each, and the words that are no options.

    A dash is as good as an underscore, the last part of a dotted name is enough, a flag needs no value, a list's
    elements follow one another, and words without an option are the ``first`` arguments. One number for a list of
    ``seeds`` is their count: ``--seeds 3`` is ``--seeds 0 1 2``; one seed alone is ``--seeds [5]``.

    Args:
        words: of the command line.
        options: the type of each option by name.
        also: other names of options.
        first: options that need not be named.

    Example:
        >>> spelled(["--quick", "--seeds", "2", "--root", "data"], {"quick": bool, "seeds": list[int], "root": str})
        (['--quick=true', '--seeds=[0, 1]', '--root=data'], [])
    """
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            groups.append([word])
        else:
            groups[-1].append(word)
    found: list[str] = []
    unknown: list[str] = []
    loose = groups[0]
    for word, *values in groups[1:]:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        name = (also or {}).get(name, name)
        full = next((key for key in options if key == name or key.endswith(f".{name}")), None)
        if full is None or not word.startswith("--"):
            unknown += [word, *values]
            continue
        values = [value, *values] if equals else values
        taken = len(values) if _is_list(options[full]) and not equals else 1
        if options[full] is bool and values[:1] not in (["true"], ["false"]):
            found, loose = [*found, f"--{full}=true"], [*loose, *values]
        else:
            found, loose = [*found, *_option(full, options[full], values[:taken])], [*loose, *values[taken:]]
    for key in first:
        taken = len(loose) if _is_list(options[key]) else 1
        if loose:
            found, loose = [*found, *_option(key, options[key], loose[:taken])], loose[taken:]
    return found, [*loose, *unknown]


def _is_list(hint: Any) -> bool:
    kinds = (list, tuple, Sequence)
    return get_origin(hint) in kinds or any(get_origin(part) in kinds for part in get_args(hint))


def _option(name: str, hint: Any, values: Sequence[str]) -> list[str]:
    """``--name=value``; without a value the option alone, which the parser refuses."""
    if not values:
        return [f"--{name}"]
    if not _is_list(hint) or values[0].startswith("["):
        return [f"--{name}={values[0]}"]
    if name.rpartition(".")[2] == "seeds" and len(values) == 1 and values[0].lstrip("-").isdecimal():
        return [f"--{name}={list(seed_list(int(values[0])))}"]
    numbers = any({int, float} & {*get_args(part)} for part in (hint, *get_args(hint)))
    return [f"--{name}=" + (f"[{', '.join(values)}]" if numbers else json.dumps(list(values)))]
