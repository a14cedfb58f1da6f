"""CONTRIBUTING is true: a new algorithm, callback or data module is the files listed there, and nothing else is told.

A toy of each kind is added to a copy of the repository, file by file as CONTRIBUTING lists them; then whatever runs on
every algorithm, callback and data module must have found it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import CHECKS, FILES, LINES

ROOT = Path(__file__).parents[1]
MOST = {"algorithm": 5, "callback": 4, "data module": 4}
COPIED = ("lightning_gp", "tests", "docs", "examples", "README.md", "CONTRIBUTING.md", "pyproject.toml")


def listed(kind: str) -> list[str]:
    """The files that CONTRIBUTING names for an addition."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition(f"## A new {kind}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d\. `([^`]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("kind", MOST)
def test_the_lists_are_short_and_of_files_that_exist(kind):
    files = listed(kind)
    assert 0 < len(files) <= MOST[kind]
    for file in files:
        pattern = re.sub("<[a-z]+>", "*", file)
        assert list(ROOT.glob(pattern)), f"CONTRIBUTING lists {file}, but there is no {pattern}"


@pytest.mark.parametrize("kind", MOST)
def test_the_toys_are_these_files(kind):
    patterns = [re.sub("<[a-z]+>", "[a-z_]+", re.escape(file)) for file in listed(kind)]
    files = [*FILES[kind], *LINES[kind]]
    assert len(files) == len(patterns)
    for file in files:
        assert any(re.fullmatch(pattern, file) for pattern in patterns), file


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with all three toys."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        target = folder / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__", "_build", "results"))
        else:
            shutil.copy(ROOT / name, target)
    shutil.copytree(ROOT / "docs" / "results", folder / "docs" / "results")
    for kind in MOST:
        for name, content in FILES[kind].items():
            assert not (folder / name).exists()
            (folder / name).write_text(content)
        for name, (before, line) in LINES[kind].items():
            text = (folder / name).read_text()
            assert before in text
            (folder / name).write_text(text.replace(before, line + before, 1))
    return folder


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_every_test_of_a_kind_finds_the_toys_and_misses_nothing(copy):
    """The tests that ask for completeness, and those that run on every algorithm, callback and data module."""
    files = [
        "tests/test_package.py",
        "tests/test_docs.py",
        "tests/robustness/test_bad_input.py",
        "tests/callbacks/test_keys.py",
        "tests/modules/test_contracts.py",
        "tests/golden",
        "tests/testing",
        "tests/modules/test_toy_decay.py",
        "tests/callbacks/test_toy_size.py",
        "tests/datamodules/test_toy_cubics.py",
    ]
    words = "toy or Toy or public or reference or described or has_a_row or points_one_way or every_module_imports"
    chosen = ["-k", f"({words}) and not message"]
    shown = run(copy, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *files, *chosen)
    for name in (
        "test_every_module_keeps_its_promises[ToyDecay]",
        "test_every_module_fulfils_its_contracts[ToyDecay]",
        "test_every_callback_keeps_its_promises[ToySize]",
        "test_a_run_logs_the_keys_and_no_others[ToySize]",
        "test_the_docstring_names_them[ToySize]",
        "test_code_runs[docs/algorithms/toy_decay.md]",
        "test_code_runs[docs/callbacks/toy_size.md]",
        "test_code_runs[docs/data/toy_cubics.md]",
        "test_toy_cubics_keep_their_promises",
        "test_every_public_name_is_described_once",
        "test_the_reference_lists_every_public_name",
        "test_every_public_name_is_in_the_table[lightning_gp.datamodules]",
    ):
        assert re.search(rf"^PASSED .*{re.escape(name)}$", shown, re.MULTILINE), name


def test_maps_bounds_panels_and_the_command_line_know_the_toys(copy):
    shown = run(copy, "-c", CHECKS)
    assert shown.splitlines()[-1] == "map, bound, panels, command line"


# -- no list kept by hand -----------------------------------------------------------------------------------------

USES = ("experiments", "commands", "runs", "diagnosis")
"""Rooms that use algorithms, callbacks and data by name, each for one purpose, and know of no others."""
BASES = ("Probe", "EnvironmentModule", "NamedEnvironmentModule", "MAML", "EpisodeDataModule", "FewShotDataModule")
"""What others are subclasses of."""


def named_in(file: Path) -> set[str]:
    """Names that the code of a file uses, and texts that are nothing but a name; prose and messages are left out."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.rpartition(".")[2])
    return found


@pytest.mark.parametrize("package", ["modules", "callbacks", "datamodules"])
def test_no_code_lists_what_there_is(package):
    module = importlib.import_module(f"lightning_gp.{package}")
    kinds = {name: inspect.getsourcefile(getattr(module, name)) for name in module.__all__ if name not in BASES}
    assert len(kinds) >= 4
    for file in sorted((ROOT / "lightning_gp").rglob("*.py")):
        if file.relative_to(ROOT / "lightning_gp").parts[0] in USES:
            continue
        mentioned = {name for name in kinds.keys() & named_in(file) if Path(str(kinds[name])) != file}
        # One name is a base class or a default; several are a list that a new one would be missing from.
        assert len(mentioned) < 3, f"{file.relative_to(ROOT)} lists {sorted(mentioned)}"
