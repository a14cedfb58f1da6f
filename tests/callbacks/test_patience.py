"""What takes long says so, and what does not is silent."""

from __future__ import annotations

import re
import time

from lightning_gp.callbacks import GradientNorm, patience
from tests.callbacks.callback_cases import fit, sinusoid_data, sinusoid_maml


def test_a_long_measurement_says_so_while_it_lasts(monkeypatch, capsys, tmp_path):
    seen = []

    class Slow(GradientNorm):
        def measure(self, measurement):
            time.sleep(0.3)
            seen.append(capsys.readouterr().err)
            return super().measure(measurement)

    monkeypatch.setattr(patience, "MOMENT", 0.05)
    fit(tmp_path, sinusoid_maml(), sinusoid_data(), [Slow()], max_epochs=1)
    assert "Slow is measuring" in seen[0]
    assert re.search(r"Slow took \d+ s", capsys.readouterr().err)


def test_a_short_one_does_not(capsys):
    with patience.saying_so("GradientNorm"):
        pass
    assert capsys.readouterr().err == ""
