"""Every experiment has a command line: its help, and every command that README and docs quote."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest

from lightning_gp.cli import main
from lightning_gp.commands.reproduce import EXPERIMENTS

ROOT = Path(__file__).parents[2]
FIRST = {"gradient-norms": ["signs"]}


def quoted() -> list[str]:
    """All commands ``lightning-gp reproduce NAME …`` in README and docs, without comments and placeholders."""
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        fenced = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        inline = [re.sub(r"\s+", " ", span) for span in re.findall(r"`(lightning-gp reproduce [^`]+)`", text)]
        for line in (*fenced, *inline):
            words = re.search(r"lightning-gp reproduce ([^#;]*)", line)
            if words and not re.search(r"[…|]|--help", words[1]):
                found.add(words[1].strip().replace("<", "").replace(">", ""))
    return sorted(found)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_shows_what_can_be_chosen(name, capsys):
    words = ["reproduce", name, *FIRST.get(name, []), "--help"]
    if name in FIRST:  # one of several functions: the parser's own help
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    else:
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "--output" in shown
    assert "runs" in shown
    assert "docs/results" not in shown


def test_commands_are_quoted():
    assert len(quoted()) > 20


@pytest.mark.parametrize("words", quoted())
def test_quoted_commands_are_understood(words, monkeypatch):
    name, *rest = words.split()
    home, _, attribute = EXPERIMENTS[name].home.partition(".")
    module = importlib.import_module(f"lightning_gp.experiments.{home}")
    calls = []

    def stub(function):
        return functools.wraps(function)(lambda **arguments: calls.append(arguments))

    target = getattr(module, attribute)
    stubs = {key: stub(each) for key, each in target.items()} if isinstance(target, dict) else stub(target)
    monkeypatch.setattr(module, attribute, stubs)
    assert main(["reproduce", name, *rest]) == 0
    assert len(calls) == 1
