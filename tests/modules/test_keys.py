"""What each module says that it logs: in its keys, in its docstring, and in a run."""

from __future__ import annotations

import re

import pytest

from lightning_gp import dashboards
from lightning_gp._lightning import pl
from tests.module_cases import MODULES, build, trained_cases

OFTEN = ("accuracy", "<name>", "earlier_loss", "query_loss")
"""Words of keys that are logged for some data only."""


def logged(name: str) -> set[str]:
    module, data = build(name), MODULES[name].data()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    found = set(trainer.callback_metrics)
    if hasattr(data, "test_episodes"):
        trainer.test(module, data, verbose=False)
        found |= set(trainer.callback_metrics)
    return found


@pytest.mark.parametrize("name", trained_cases())
def test_a_run_logs_the_keys_and_no_others(name):
    keys, found = MODULES[name].module.keys, logged(name)
    unknown = [each for each in found if not any(re.fullmatch(key.pattern, each) for key in keys)]
    assert not unknown
    missing = [
        key.name
        for key in keys
        if not any(word in key.name for word in OFTEN) and not any(re.fullmatch(key.pattern, each) for each in found)
    ]
    by_name = [
        each for each in missing if any(word in each for word in ("worst", "<stage>/penalty", "<stage>/objective"))
    ]  # where data modules name their environments
    assert sorted(missing) == sorted(by_name)
    if "shares" in name:
        assert not missing


@pytest.mark.parametrize(
    "kind", dict.fromkeys(case.module for case in MODULES.values()), ids=lambda kind: kind.__name__
)
def test_every_key_has_a_panel(kind):
    panels = [panel for found in dashboards.sections().values() for panel in found]
    for key in kind.keys:
        name = re.sub("<[a-z]+>", "a", key.name.replace("<i>", "2").replace("<stage>", "val"))
        assert any(dashboards.shows(panel, name) for panel in panels), key.name


def test_docstrings_have_the_table():
    for kind in dashboards.module_classes():
        own = "keys" in vars(kind) and kind.__module__.startswith("lightning_gp.")
        assert "{keys}" not in (kind.__doc__ or "")
        if own:
            assert all(f"``{key.name}``" in kind.__doc__ for key in kind.keys), kind
