"""Sphinx configuration: pages are Markdown (MyST), the reference comes from the docstrings."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from sphinx.ext import autosummary

import lightning_gp

project = "lightning-gp"
author = "The lightning-gp developers"
version = release = lightning_gp.__version__

extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "results/*/*.md"]  # tables that pages include

html_theme = "furo"
html_title = "lightning-gp"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autosummary_generate = False  # the tables link to the pages on which a class is described, once
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "App.", "M.")  # no ends of a sentence
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature says it, and "Args" says what it means
autodoc_inherit_docstrings = False  # or every override would repeat Lightning's text
autodoc_default_options = {"members": True}

TABLE = re.compile(r"^\s*\|.*\|\s*$")
MARKS = re.compile(r"``.*?``|(?<=[(,\s])\*(?=\w+\s*[,)])|\|")
"""Code, which stays; the star of ``(E, K, *feature)`` and the bars of |x|, which are no markup."""


def plain(line: str) -> str:
    """The line with a backslash before signs that reStructuredText would take for markup."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    return MARKS.sub(lambda found: found[0] if found[0].startswith("`") else "\\" + found[0], line)


def for_sphinx(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in a terminal: Markdown tables, stars and bars as in formulas."""
    result: list[str] = []
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if TABLE.match(line):
            table.append([plain(cell.strip(" |")) for cell in line.split(" | ")])
            continue
        if table:
            header, _, *rows = table
            result += [".. list-table::", "   :header-rows: 1", ""]
            for row in (header, *rows):
                cells = [*row, *[""] * (len(header) - len(row))]
                result += [f"   {'  -' if i else '* -'} {cell}" for i, cell in enumerate(cells)]
            result.append("")
            table = []
        result.append(plain(line))
    lines[:] = result


def by_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Roles in docstrings name where a thing is defined, or only its name; it is described where it is public."""
    domain = env.get_domain("py")
    name = node["reftarget"].rpartition(".")[2]
    found = [full for full, entry in domain.objects.items() if full.rpartition(".")[2] == name and not entry.aliased]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def names_for_stars(app: Any, page: str, source: list[str]) -> None:
    """``lightning_gp.callbacks.*`` in a list of names stands for all public names of that package."""

    def listed(found: re.Match[str]) -> str:
        return "\n".join(f"   {found[1]}.{name}" for name in importlib.import_module(found[1]).__all__)

    source[0] = re.sub(r"^   (lightning_gp\S*)\.\*$", listed, source[0], flags=re.MULTILINE)


def setup(app: Any) -> None:
    """Tables are made after napoleon, which would take them for text."""
    app.connect("autodoc-process-docstring", for_sphinx, priority=900)
    app.connect("missing-reference", by_name)
    app.connect("source-read", names_for_stars)
