"""The shape of the package: what importing it costs, and which way imports point."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_gp
from tests.public import PACKAGES

HEAVY = ("wandb", "matplotlib", "higher", "torchvision", "scipy.sparse", "tensorboard")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_nothing_heavy():
    assert run("import sys, lightning_gp; print('torch' in sys.modules)").strip() == "False"


def test_importing_every_public_name_loads_no_optional_dependency():
    # What Lightning and torchmetrics import by themselves is theirs.
    code = (
        "import sys, pytorch_lightning, torchmetrics; before = set(sys.modules)\n"
        "import lightning_gp; [getattr(lightning_gp, name) for name in lightning_gp.__all__]\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package):
    module = importlib.import_module(f"lightning_gp{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        module.nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_that_of_a_module_beside_it(package):
    """Whoever imports the module would find it in place of the function or class of that name."""
    module = importlib.import_module(f"lightning_gp{package}")
    assert not set(module.__all__) & {info.name for info in pkgutil.iter_modules(module.__path__)}


def test_every_module_imports():
    for info in pkgutil.walk_packages(lightning_gp.__path__, "lightning_gp."):
        importlib.import_module(info.name)


def test_imports_point_one_way():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        cwd=lightning_gp.__path__[0] + "/..",
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_package_page_has_nothing_that_only_a_clone_has():
    page = (Path(__file__).parents[1] / "PACKAGE.md").read_text()
    assert "](" not in page.replace("](http", "")
