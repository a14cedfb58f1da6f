"""Command lines from functions: what words mean, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lightning_gp.runs.command import command


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        outer_lr: the rate outside.
        widths: of the layers.
    """

    outer_lr: float = 0.1
    widths: tuple[int, ...] | None = None


SETTINGS = Settings()


def experiment(
    kind: Literal["small", "large"],
    number: int,
    others: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    quick: bool = False,
    compile: bool = True,
    settings: Settings = SETTINGS,
    names: Sequence[str] = (),
    output: Path = Path("runs"),
) -> dict[str, object]:
    """Shows something.

    In detail.

    Args:
        kind: which of both.
        number: fixed.
        others: the rest.
        seeds: of the runs.
        quick: in minutes.
        compile: the step.
        settings: see there.
        names: of cells.
        output: folder.
    """
    return {key: value for key, value in locals().items() if value != DEFAULTS.get(key)}


DEFAULTS = {"number": 7, "others": (), "seeds": [0, 1, 2], "quick": False, "compile": True, "settings": SETTINGS}
DEFAULTS |= {"names": [], "output": Path("runs")}


def run(*words: str, rest: str | None = None) -> dict[str, object]:
    return command(experiment, "prog", words, {"restarts": "seeds"}, rest, number=7, **({} if rest else {"others": ()}))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("small", {}),
        ("--kind small", {}),
        ("--quick small", {"quick": True}),
        ("small --quick=false --compile false", {"compile": False}),
        ("small --seeds 2", {"seeds": [0, 1]}),
        ("small --seeds 4 7", {"seeds": [4, 7]}),
        ("small --seeds [5]", {"seeds": [5]}),
        ("small --restarts 1", {"seeds": [0]}),
        ("small --outer-lr 1e-3", {"settings": Settings(1e-3)}),
        ("small --outer_lr=2 --widths 4 8", {"settings": Settings(2.0, (4, 8))}),
        ("small --names 1 a/*/b --output x", {"names": ["1", "a/*/b"], "output": Path("x")}),
    ],
)
def test_words_become_arguments(words, expected):
    assert run(*words.split()) == {"kind": "small", **expected}


def test_words_of_another_command_are_passed_on():
    found = run("small", "--model.inner_lr=1", "--trainer.max_epochs", "2", "--quick", rest="others")
    assert found["others"] == ["--model.inner_lr=1", "--trainer.max_epochs", "2"]
    assert found["quick"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "kind"),
        ("medium", "medium"),
        ("small --fast", "--fast"),
        ("small large", "large"),
        ("small --seeds", "--seeds"),
        ("small --seeds one", "one"),
        ("small --outer-lr fast", "fast"),
        ("small --number 3", "--number"),
    ],
)
def test_what_is_no_argument_is_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_seeds_are_refused(count):
    with pytest.raises(ValueError, match=f"seeds={count}"):
        run("small", "--seeds", count)


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in ("Shows something. In detail.", "in minutes.", "the rate outside", "prog"))
    assert "--number" not in shown


def other() -> int:
    """Counts."""
    return 3


def test_one_of_several_functions(capsys):
    functions = {"one": experiment, "other": other}
    assert command(functions, "prog", ["other"]) == 3
    command(functions, "prog", ["--help"])
    assert "prog one        Shows something." in capsys.readouterr().out
    with pytest.raises(ValueError, match="prog none: choose from one, other"):
        command(functions, "prog", ["none"])
