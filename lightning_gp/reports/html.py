"""Pieces of a page: sections, tables, figures, words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lightning_gp.reports.meanings import Meaning
from lightning_gp.reports.panels import Panel


def section(title: str, content: str, wide: bool = False) -> str:
    """A section with its title; nothing, if there is nothing below it."""
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def figures(drawn: Sequence[Panel], declared: Mapping[str, Meaning]) -> str:
    """Panels side by side, each with what its curves mean."""
    found = []
    for panel in drawn:
        by_words: dict[str, list[str]] = {}
        for key in panel.keys if declared else ():
            meaning = words(declared[key], about=True)
            if meaning:
                by_words.setdefault(meaning, []).append(f"<code>{escape(key)}</code>")
        said = "; ".join(f"{keys[0]}{' …' if len(keys) > 1 else ''}: {meaning}" for meaning, keys in by_words.items())
        caption = f"<figcaption><b>{escape(panel.title)}</b><br>{said}</figcaption>"
        found.append(f'<figure><img src="{panel.image}" alt="{escape(panel.title)}">{caption}</figure>')
    return f"<div class=figures>{''.join(found)}</div>"


def table(rows: Iterable[Sequence[str]], title: Sequence[str] = (), safe: bool = False) -> str:
    """A table; on a telephone each cell of a wide section is a line that begins with its title."""

    def cells(row: Sequence[str]) -> str:
        labels = list(title) or [""] * len(row)
        shown = [cell if safe else escape(cell) for cell in row]
        return "".join(
            f'<td data-label="{escape(label)}">{cell}</td>' for cell, label in zip(shown, labels, strict=False)
        )

    head = f"<thead><tr>{''.join(f'<th>{escape(each)}</th>' for each in title)}</tr></thead>" if title else ""
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return f"<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>"


def sentences(said: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in said)}</ul>" if said else ""


def words(meaning: Meaning, about: bool = False) -> str:
    """A declared meaning; one that refers to its class is that class's first line, if it does not stand above."""
    if meaning.key is None:
        return ""
    text = meaning.key.meaning.removesuffix(", see above")
    return code(meaning.about if about else "") if text == "see above" else code(text)


def code(text: str) -> str:
    """Text of a docstring, with what it marks as code."""
    return re.sub(r"``(.+?)``", r"<code>\1</code>", escape(text, quote=False))
