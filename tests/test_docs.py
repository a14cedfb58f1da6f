"""The documentation tells the truth: its code runs, its links lead somewhere, and every public name is described.

All ``python`` blocks of a page of ``docs/`` run in order in one namespace. Blocks marked ``python no-run`` need data or
hours: of these, and of README.md, the imports are made and the calls are compared with the signatures.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from lightning_gp.cli import COMMANDS
from lightning_gp.commands.reproduce import EXPERIMENTS
from tests.public import PACKAGES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "results"} & set(page.relative_to(DOCS).parts))
README = ROOT / "README.md"
EVERYTHING = [*PAGES, README]
CITATION = re.compile(r"\[([A-Z]\d\d)[],]")
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, info: str) -> list[str]:
    """Code of the page's blocks, with line breaks before it so that errors name the page's own lines."""
    text = page.read_text()
    return [
        "\n" * text[: found.start("code")].count("\n") + found["code"]
        for found in FENCE.finditer(text)
        if found["info"].strip() == info
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = types.ModuleType("__docs__")
    monkeypatch.setitem(sys.modules, "__docs__", module)  # what a page defines can be pickled
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), vars(module))


@pytest.mark.parametrize("page", [*(page for page in PAGES if blocks(page, "python no-run")), README], ids=name_of)
def test_code_that_is_not_run_has_the_right_names(page):
    namespace: dict[str, object] = {"torch": torch}
    for code in [*blocks(page, "python"), *blocks(page, "python no-run")]:
        tree = ast.parse(code)
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        peers = ("learn2learn", "higher", "torchmeta", "pyhessian", "domainbed")
        for node in imports:
            home = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if not str(home).startswith(peers):
                exec(compile(ast.Module([node], []), name_of(page), "exec"), namespace)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            target = resolved(call.func, namespace)
            if target is not None and getattr(target, "__module__", "").startswith("lightning_gp"):
                bind(target, call, name_of(page))


def resolved(node: ast.expr, namespace: dict[str, object]) -> object:
    if isinstance(node, ast.Name):
        return namespace.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(resolved(node.value, namespace), node.attr, None)
    return None


def bind(target: object, call: ast.Call, page: str) -> None:
    if any(isinstance(argument, ast.Starred) for argument in call.args) or not callable(target):
        return
    names = {keyword.arg for keyword in call.keywords if keyword.arg}
    if inspect.isclass(target) and not hasattr(target, "_fields"):
        bases = [base for base in inspect.getmro(target) if base is not object and "__init__" in vars(base)]
        known = {name for base in bases for name in inspect.signature(base.__init__).parameters}  # through **kwargs
        assert names <= known, f"{page}: {target.__name__} has no argument {sorted(names - known)}"
    inspect.signature(target).bind(*call.args, **dict.fromkeys(names))


@pytest.mark.parametrize("page", EVERYTHING, ids=name_of)
def test_links_and_figures_exist(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)} links to {target}"
    for inner, bare in re.findall(r"\{doc\}`(?:[^`<]*<([^>]+)>|([^`<]+))`", text):
        assert (page.parent / f"{inner or bare}.md").exists(), f"{name_of(page)} links to the page {inner or bare}"


@pytest.mark.parametrize("page", EVERYTHING, ids=name_of)
def test_commands_exist(page):
    for line in "\n".join(blocks(page, "bash")).replace("&&", "\n").splitlines():
        words = [word for word in line.split("#")[0].split() if not re.match(r"[A-Z_]+=", word)]
        if len(words) > 1 and words[0].endswith("lightning-gp") and words[1] != "…":
            assert words[1] in COMMANDS, line
        if "reproduce" in words:
            assert words[words.index("reproduce") + 1] in EXPERIMENTS, line
        for word in words:
            if word.startswith("examples/"):
                assert (ROOT / word).exists(), line


def test_every_command_is_listed():
    text = (DOCS / "command_line.md").read_text()
    assert not [command for command in COMMANDS if not re.search(rf"^\| .*`{command}\b", text, re.MULTILINE)]


def test_every_experiment_has_a_page():
    text = "\n".join(page.read_text() for page in (DOCS / "experiments").glob("*.md"))
    missing = [name for name in EXPERIMENTS if not re.search(rf"\b{name}\b", text)]
    assert set(missing) <= {"lil-table3", "lil-table4"}  # inside "lil-table1 … lil-table5", "Tables 2-5"


def described() -> list[object]:
    """Every object that an autodoc directive describes."""
    found = []
    for page in PAGES:
        module = ""
        for kind, target in re.findall(r"^\.\. (currentmodule|auto\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            if kind == "currentmodule":
                module = target
            elif kind in ("autoclass", "autofunction"):
                full = target if target.startswith("lightning_gp") else f"{module}.{target}"
                home, _, name = full.rpartition(".")
                found.append(getattr(importlib.import_module(home), name))
    return found


def test_every_public_name_is_described_once():
    found = described()
    for package in PACKAGES:
        module = importlib.import_module(f"lightning_gp{package}")
        for name in module.__all__:
            times = sum(each is getattr(module, name) for each in found)
            assert times == 1, f"lightning_gp{package}.{name} is described {times} times in docs/"


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^   (lightning_gp\S*)\.\*$", (DOCS / "api" / "index.md").read_text(), re.MULTILINE)
    homes = [importlib.import_module(name) for name in listed]
    there = [getattr(home, name) for home in homes for name in home.__all__]
    for package in PACKAGES:
        module = importlib.import_module(f"lightning_gp{package}")
        missing = [name for name in module.__all__ if not any(getattr(module, name) is each for each in there)]
        assert not missing, f"docs/api/index.md lacks {missing} of lightning_gp{package}"


def test_every_cited_source_is_listed():
    listed = set(re.findall(r"\[([A-Z]\d\d)\]", (DOCS / "references.md").read_text()))
    cited = {key for file in (ROOT / "lightning_gp").rglob("*.py") for key in re.findall(CITATION, file.read_text())}
    assert cited <= listed, f"docs/references.md lacks {sorted(cited - listed)}"


def shown_messages() -> list[tuple[str, str]]:
    """Code and message of the FAQ: a ``text`` block follows the ``python raises`` block that provokes it."""
    text = (DOCS / "faq.md").read_text()
    found = [(match["info"].strip(), match["code"]) for match in FENCE.finditer(text)]
    return [
        (code, message)
        for (info, code), (kind, message) in zip(found, found[1:], strict=False)
        if (info, kind) == ("python raises", "text")
    ]


@pytest.mark.parametrize(("code", "message"), shown_messages(), ids=lambda value: value[:40].replace("\n", " "))
def test_messages_of_the_faq_are_the_real_ones(code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, _, text = message.partition(": ")
    namespace = vars(types.ModuleType("faq"))
    for setup in blocks(DOCS / "faq.md", "python"):
        exec(setup, namespace)
    with pytest.raises(Exception) as error, contextlib.suppress(SystemExit):  # noqa: PT011
        exec(code, namespace)
    assert type(error.value).__name__ == kind
    assert " ".join(str(error.value).replace(str(tmp_path), "…").split()) == " ".join(text.split())
