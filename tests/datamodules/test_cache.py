"""The cache is there whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

from lightning_gp.datamodules.cache import cache_folder, cached_array

ROWS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def never():
    raise AssertionError("the cache was there, yet it was built again")
    yield


def test_built_once_then_memory_mapped(tmp_path):
    path = tmp_path / "new" / "cache.npy"
    np.testing.assert_array_equal(cached_array(path, ROWS.shape, iter(ROWS)), ROWS)
    again = cached_array(path, ROWS.shape, never())
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, ROWS)
    assert os.listdir(path.parent) == ["cache.npy"]


@pytest.mark.parametrize("error", [ValueError("broken image"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(tmp_path, error):
    def interrupted():
        yield ROWS[0]
        raise error

    with pytest.raises(type(error)):
        cached_array(tmp_path / "cache.npy", ROWS.shape, interrupted())
    assert os.listdir(tmp_path) == []


def test_nothing_is_visible_before_the_build_is_complete(tmp_path):
    path = tmp_path / "cache.npy"

    def rows():
        for row in ROWS:
            assert not path.exists()
            yield row

    cached_array(path, ROWS.shape, rows())


def test_two_that_build_at_once_both_get_a_whole_cache(tmp_path):
    path = tmp_path / "cache.npy"

    def with_a_rival():
        yield ROWS[0]
        np.testing.assert_array_equal(cached_array(path, ROWS.shape, iter(ROWS)), ROWS)
        yield from ROWS[1:]

    np.testing.assert_array_equal(cached_array(path, ROWS.shape, with_a_rival()), ROWS)
    assert os.listdir(tmp_path) == ["cache.npy"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "other shape"])
def test_what_is_no_whole_cache_is_built_again(tmp_path, damage):
    path = tmp_path / "cache.npy"
    cached_array(path, ROWS.shape, iter(ROWS))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        np.save(path, ROWS[:2])
    np.testing.assert_array_equal(cached_array(path, ROWS.shape, iter(ROWS)), ROWS)


@pytest.mark.parametrize("rows", [ROWS[:3], np.concatenate([ROWS, ROWS]), ROWS[:, :1], ROWS.astype(np.int16)])
def test_rows_that_do_not_fit_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="Expected"):
        cached_array(tmp_path / "cache.npy", ROWS.shape, iter(rows))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"Cannot write the image cache .*cache_dir=.*LIGHTNING_GP_CACHE"):
        cached_array(tmp_path / "file" / "cache.npy", ROWS.shape, iter(ROWS))


def test_where_caches_go(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(None, tmp_path) == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder(None, tmp_path) == tmp_path / "user" / "lightning_gp"
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "env"))
    assert cache_folder(None, tmp_path) == tmp_path / "env"
    assert cache_folder("here", tmp_path) == Path("here")
