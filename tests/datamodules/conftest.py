import pytest

from tests.datamodules.image_cases import THREE, write_tree


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch):
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


@pytest.fixture
def tree(tmp_path):
    """Three splits of classes of coloured images."""
    return write_tree(tmp_path / "data", THREE)
