"""Equations as MathML, which browsers draw without scripts, fonts or a network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError


def inline(translator: Any, node: nodes.math) -> None:
    """An equation within a line."""
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """An equation of its own."""
    translator.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def _mathml(latex: str, display: str) -> str:
    try:
        result: str = convert(latex, display=display)
    except Exception as error:
        raise ExtensionError(f"The equation {latex!r} cannot be written as MathML: {error}") from error
    result = re.sub(r">\\(?:[lr]?Vert|\|)<", ">‖<", result)  # which the converter leaves as they are behind \\Bigl
    if "\\" in result:
        raise ExtensionError(f"The equation {latex!r} has a command that is not known: {result}")
    return result


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
