"""The sections of a report, each the HTML below its title; empty where there is nothing to say."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning_gp.diagnosis.advice import EDGE as ABOVE
from lightning_gp.reports.html import code, figures, table, words
from lightning_gp.reports.logs import EVALUATIONS, Logs, Picture
from lightning_gp.reports.meanings import Meaning, outside
from lightning_gp.reports.panels import EDGE, RATES, edge_panel
from lightning_gp.runs.ending import result_rows
from lightning_gp.runs.versions import all_versions

LAST = ("val/accuracy", "val/loss", "train/loss")
"""What is shown of a run that was not tested."""


def results(logs: Logs) -> str:
    """Tests and validations after training; of a run without them, what it logged last."""
    found = []
    for path, values in logs.tests.items():
        for stage in EVALUATIONS:
            own = {key: value for key, value in values.items() if key.startswith(stage)}
            if own:
                rows = result_rows(own)
                title = rows.pop(0) if rows[0][0] == "" else []
                place = path.relative_to(logs.folder)
                found.append(f"<h3>{stage[:-1]}, from {escape(str(place))}</h3>{table(rows, title)}")
    if found:
        return "".join(found) + "<p class=note>± is the 95 % interval over test episodes.</p>"
    rows = [[key, f"{value:.4g}"] for key, value in logs.last.items() if key in LAST]
    return table(rows, ["last logged", ""]) + "<p class=note>Not tested yet: lightning-gp test --config …</p>"


def edge(logs: Logs) -> str:
    """The distance to the edge over training, and in words."""
    panel = edge_panel(logs.curves)
    if panel is None:
        return (
            "<p>It was not measured. Train with <code>--trainer.callbacks+ LearningRateBounds</code>, or ask "
            "<code>lightning-gp diagnose</code>.</p>"
        )
    said = []
    for key in panel.keys:
        curve = logs.curves[key]
        finite = {step: value for step, value in curve.items() if math.isfinite(value)}
        if not finite:
            said.append(f"{key} was measured {len(curve)} times and never had a value.")
            continue
        highest = max(finite, key=lambda step: finite[step])
        above = sum(value > ABOVE for value in finite.values())
        last = max(finite)
        said.append(
            f"{key}: {finite[last]:.3g} at the last measurement (step {last:,}), largest {finite[highest]:.3g} (step "
            f"{highest:,}), above {ABOVE} in {above} of {len(finite)} measurements."
        )
        prefix = key.removesuffix(EDGE)
        rate, critical = (logs.last.get(prefix + name) for name in RATES)
        if rate is not None and critical is not None:
            said.append(
                f"At the end the rate in use was {rate:.3g}; the largest that converges there is {critical:.3g}."
            )
    said.append(
        "Above 1 a step overshoots along the sharpest direction. Training with full batches climbs to 1 and stays "
        "near it, and is none the worse; a value well above 1 means that the loss grows until training diverges or is "
        "thrown to a flatter place."
    )
    return figures([panel], {}) + "".join(f"<p>{escape(each)}</p>" for each in said)


def pictures(pictures: Sequence[Picture]) -> str:
    """The first and the last of each key."""
    found = []
    for key in dict.fromkeys(picture.key for picture in pictures):
        own = [picture for picture in pictures if picture.key == key]
        for picture in dict.fromkeys([own[0], own[-1]]):
            content = base64.b64encode(picture.path.read_bytes()).decode()
            caption = f"<figcaption><b>{escape(key)}</b> step {picture.step:,}, of {len(own)}</figcaption>"
            found.append(f'<figure><img src="data:image/png;base64,{content}" alt="{escape(key)}">{caption}</figure>')
    return f"<div class=figures>{''.join(found)}</div>" if found else ""


def logged(logs: Logs, declared: Mapping[str, Meaning]) -> str:
    """Every key with its values, its declared range and meaning, by who logs it."""
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for key, curve in sorted(logs.curves.items()):
        meaning, values = declared[key], list(curve.values())
        finite = [value for value in values if math.isfinite(value)]
        low, high = (f"{bound(finite):.4g}" if finite else "" for bound in (min, max))
        odd = meaning.key is not None and any(outside(meaning.key, value) for value in values)
        lost = f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
        row = [
            f"<code>{escape(key)}</code>",
            f"{curve[max(curve)]:.4g}",
            f"{low} … {high}{lost}{' <b class=odd>outside its range</b>' if odd else ''}",
            code(meaning.key.range) if meaning.key else "",
            words(meaning),
        ]
        groups.setdefault((meaning.source, meaning.about), []).append(row)
    title = ["key", "last", "smallest … largest", "range", "meaning"]
    found = []
    for (source, about), rows in sorted(groups.items(), key=lambda group: (not group[0][0], group[0])):
        found.append(f"<h3>{escape(source or 'Others')}</h3><p>{code(about)}</p>{table(rows, title, safe=True)}")
    return "".join(found)


def constants(values: Mapping[str, float]) -> str:
    """What never changed."""
    said = ", ".join(f"<code>{escape(key)}</code> = {value:.4g}" for key, value in values.items())
    return f"<p>{said}</p>" if said else ""


def checkpoints(logs: Logs) -> str:
    """The files, and which one is best by what."""
    states = [each for each in (logs.saved.get("callbacks") or {}).values() if isinstance(each, Mapping)]
    best = {Path(str(each["best_model_path"])).name: each for each in states if each.get("best_model_path")}
    rows = []
    for path in logs.checkpoints:
        state, said = best.get(path.name), ""
        if state is not None:
            score = state.get("best_model_score")
            value = f" {state.get('monitor')} {float(score):.4g}" if score is not None and state.get("monitor") else ""
            said = f"best:{value}" if value else "the last one kept"
        rows.append([str(path.relative_to(logs.folder)), f"{path.stat().st_size / 1e6:.2f} MB", said])
    return table(rows) if rows else "<p>There is none.</p>"


def config(logs: Logs) -> str:
    """The config, folded."""
    if not logs.config:
        return "<p>There is no config.yaml: the run was not started by lightning-gp fit.</p>"
    return f"<details><summary>config.yaml</summary><pre>{escape(logs.config)}</pre></details>"


def versions(logs: Logs) -> str:
    """Of what trained the run, and of what made the page."""
    saved = logs.saved.get("pytorch-lightning_version")
    trained: dict[str, Any] = dict(logs.versions) or ({"lightning (from the checkpoint)": saved} if saved else {})
    rows = [["trained with", name, str(version)] for name, version in sorted(trained.items())]
    rows += [["this page made with", name, version] for name, version in sorted(all_versions().items())]
    return table(rows)
