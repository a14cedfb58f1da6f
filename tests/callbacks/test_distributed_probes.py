"""Two processes log what one does."""

import pytest

from lightning_gp.testing import on_processes
from tests.callbacks.distributed_run import main


def test_one_and_two_processes_log_the_same(tmp_path):
    alone, (first, second) = main(1, tmp_path), on_processes(lambda rank: main(2, tmp_path))
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
