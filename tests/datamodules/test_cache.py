"""The cache is there whole or not at all."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_gp.datamodules.images import cache
from lightning_gp.datamodules.images.cache import cache_folder, cached_array

ROWS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)

BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from lightning_gp.datamodules.images.cache import cached_array
ROWS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
path = Path(sys.argv[1])
def never():
    raise AssertionError("built again")
    yield
def slow(path, seconds):
    def rows():
        for row in ROWS:
            yield row
            time.sleep(seconds)
    return cached_array(path, ROWS.shape, rows())
"""


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


def run(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", BUILDER + code, *map(str, arguments)], stdout=subprocess.PIPE)


def test_of_two_that_build_at_once_one_waits(tmp_path):
    path = tmp_path / "cache.npy"
    first = run("print(slow(path, 0.3).sum())", path)
    while not list(tmp_path.glob("*.tmp")):
        time.sleep(0.01)
    second = run("print(cached_array(path, ROWS.shape, never()).sum())", path)
    assert [int(process.communicate(timeout=60)[0]) for process in (first, second)] == [ROWS.sum()] * 2
    assert os.listdir(tmp_path) == ["cache.npy"]


def no_locks(lock):
    raise NotImplementedError("FileSystem does not appear to support flock")


def test_where_locks_do_not_work_both_build(tmp_path, monkeypatch):
    path = tmp_path / "cache.npy"
    monkeypatch.setattr(cache, "_lock", lambda file, wait: False)
    monkeypatch.setattr(cache.FileLock, "acquire", no_locks)

    def with_a_rival():
        yield ROWS[0]
        np.testing.assert_array_equal(cached_array(path, ROWS.shape, iter(ROWS)), ROWS)
        yield from ROWS[1:]

    np.testing.assert_array_equal(cached_array(path, ROWS.shape, with_a_rival()), ROWS)
    assert os.listdir(tmp_path) == ["cache.npy"]


def test_what_a_killed_process_leaves_is_never_read_and_removed(tmp_path):
    path = tmp_path / "data-8px-00.npy"
    killed = run("slow(path, 60)", path)
    while not list(tmp_path.glob("*.tmp")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not path.exists()
    assert list(tmp_path.glob("*.tmp"))
    other = tmp_path / "data-8px-01.npy"  # the files have changed meanwhile
    np.testing.assert_array_equal(cached_array(other, ROWS.shape, iter(ROWS)), ROWS)
    assert not list(tmp_path.glob("*.tmp"))
    np.testing.assert_array_equal(cached_array(path, ROWS.shape, iter(ROWS)), ROWS)
    assert sorted(os.listdir(tmp_path)) == [path.name, other.name]


def test_temporary_files_of_others_are_left_until_they_are_old(tmp_path):
    foreign = tmp_path / "data-8px-00.npy.another-machine.abc.tmp"
    foreign.write_bytes(b"being written over there")
    cached_array(tmp_path / "data-8px-01.npy", ROWS.shape, iter(ROWS))
    assert foreign.exists()
    os.utime(foreign, (0, 0))
    cached_array(tmp_path / "data-8px-02.npy", ROWS.shape, iter(ROWS))
    assert not foreign.exists()


def locked(path):
    with path.open("rb") as file:
        return not cache._lock(file, wait=False)


def test_a_temporary_file_that_is_being_written_stays(tmp_path):
    path = tmp_path / "data-8px-00.npy"
    writer = run("slow(path, 60)", path)
    try:
        while not any(locked(file) for file in tmp_path.glob("*.tmp")):
            time.sleep(0.01)
        cached_array(tmp_path / "data-8px-01.npy", ROWS.shape, iter(ROWS))
        assert len(list(tmp_path.glob("*.tmp"))) == 1
    finally:
        writer.kill()
        writer.communicate()


def test_a_temporary_file_that_is_taken_for_abandoned_before_its_lock_is_made_again(tmp_path, monkeypatch):
    made, create = [], cache.tempfile.mkstemp

    def swept_once(**arguments):
        made.append(create(**arguments))
        if len(made) == 1:
            cache._remove_abandoned(tmp_path / "data-8px-01.npy")  # as another process may do right now
            assert not os.path.exists(made[0][1])
        return made[-1]

    monkeypatch.setattr(cache.tempfile, "mkstemp", swept_once)
    np.testing.assert_array_equal(cached_array(tmp_path / "data-8px-00.npy", ROWS.shape, iter(ROWS)), ROWS)
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["data-8px-00.npy"]


def test_a_full_disk_is_seen_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"cache\.npy: it takes 0\.0 GB, and the disk has 0\.0 GB left.*cache_dir="):
        cached_array(tmp_path / "cache.npy", ROWS.shape, never())
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Cannot write the image cache .*cache\.npy: .*No space left.*cache_dir="):
        cached_array(tmp_path / "cache.npy", ROWS.shape, iter(ROWS))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_disk_that_is_full_to_the_kernel(tmp_path, monkeypatch):
    def on_a_full_disk(prefix, suffix, dir):
        name = str(Path(dir) / f"{prefix}{suffix}")
        os.symlink("/dev/full", name)
        return os.open(name, os.O_WRONLY), name

    monkeypatch.setattr("tempfile.mkstemp", on_a_full_disk)
    with pytest.raises(OSError, match=r"No space left.*cache_dir="):
        cached_array(tmp_path / "cache.npy", (400, 100, 100), iter(np.zeros((400, 100, 100), np.uint8)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "too long", "empty", "pickle", "other shape", "other order"])
def test_what_is_no_whole_cache_is_built_again(tmp_path, damage):
    path = tmp_path / "cache.npy"
    cached_array(path, ROWS.shape, iter(ROWS))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "too long":
        path.write_bytes(path.read_bytes() + b"\0")
    elif damage == "other order":
        np.save(path, np.asfortranarray(ROWS))
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
