"""No refactoring moves a number unseen: ten steps of every module are those that were recorded."""

from __future__ import annotations

import json

import pytest

from tests.golden.curves import FOLDER, curve, place
from tests.module_cases import MODULES

KNOWN = json.loads((FOLDER / "curves.json").read_text())


def test_what_is_recorded_is_still_there():
    assert {name for record in KNOWN.values() for name in record} <= set(MODULES)


def numbers(found):
    return [float.fromhex(value) for value in [*found["losses"], found["weights"]]]


@pytest.mark.parametrize("name", MODULES)
def test_ten_steps_are_those_recorded(name):
    if not any(name in record for record in KNOWN.values()):
        pytest.skip(f"{name} is not recorded yet: python -m tests.golden.curves")
    found = curve(name)
    if name in KNOWN.get(place(), {}):
        assert found == KNOWN[place()][name]  # to the last bit, on the same torch and processor
    for record in (each for each in KNOWN.values() if name in each):
        assert numbers(found) == pytest.approx(numbers(record[name]), rel=1e-9)
