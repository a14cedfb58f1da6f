"""Results are kept with their settings, and nothing is overwritten by others."""

from __future__ import annotations

import json

import pytest

from lightning_gp.runs.folders import check_settings, kept, same_settings


def test_a_result_is_made_once(tmp_path):
    path, made = tmp_path / "deep" / "result.json", []

    def make():
        made.append(1)
        return {"loss": 0.5}

    for _ in range(2):
        assert kept(path, {"rate": 0.1, "widths": (1, 2)}, make) == {
            "settings": {"rate": 0.1, "widths": [1, 2]},
            "loss": 0.5,
        }
    assert made == [1]
    assert json.loads(path.read_text())["loss"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.2}, "rate was 0.1, is 0.2"),
        ({}, "rate was 0.1, is None"),
        ({"rate": 0.1, "b": 1}, "b was None, is 1"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(tmp_path, settings, message):
    same_settings(tmp_path, {"rate": 0.1})
    path = tmp_path / "settings.json"
    before = path.read_bytes()
    for refused in (same_settings, lambda folder, given: check_settings(folder / "settings.json", given)):
        with pytest.raises(ValueError, match=message):
            refused(tmp_path, settings)
    with pytest.raises(ValueError, match=r"Nothing was overwritten; give another folder \(--output\)"):
        kept(path, settings, dict)
    assert path.read_bytes() == before


def test_a_failed_computation_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path / "result.json", {}, lambda: {"loss": 1 / 0})
    assert not list(tmp_path.iterdir())
