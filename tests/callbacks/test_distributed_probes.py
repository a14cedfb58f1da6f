import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(processes, folder):
    folder.mkdir()
    script = Path(__file__).with_name("distributed_run.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(processes), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def test_one_and_two_processes_log_the_same(tmp_path):
    (alone,), (first, second) = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    assert first == second
    for name, values in alone.items():
        assert len(values) >= 10
        if "curvature/products" in values:
            products = values.pop("curvature/products")
            assert abs(first[name].pop("curvature/products") - products) <= 2
        residuals = [key for key in values if "residual" in key]
        for key in residuals:
            assert first[name].pop(key) < 1e-2 * abs(values["curvature/eigenvalue_1"])
            values.pop(key)
        counts = [value for key, value in values.items() if "/episodes/" in key]
        assert set(counts) <= {5.0 if name == "test" else 3.0}
        assert first[name] == {key: pytest.approx(value, rel=1e-5) for key, value in values.items()}, name
