"""Archives unpack whole or not at all, and never outside their folder."""

import io
import os
import shutil
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from lightning_gp.datamodules.images.sources.archives import unpack

FILES = {"set/images/a/1.jpg": b"one" * 400, "./set/images/b/2.jpg": b"two" * 900, "notes.txt": b"notes"}


def tar(path, files, mode="w:gz", **member):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in member.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w", "zip"])
def test_unpacks_a_folder_of_the_archive(tmp_path, kind):
    path = tmp_path / "archive"
    zipped(path, FILES) if kind == "zip" else tar(path, FILES, kind)
    unpack(path, tmp_path / "out", "set")
    assert everything(tmp_path) == ["archive", "out/images/a/1.jpg", "out/images/b/2.jpg"]
    assert (tmp_path / "out/images/b/2.jpg").read_bytes() == b"two" * 900
    unpack(path, tmp_path / "all")
    assert everything(tmp_path / "all") == ["notes.txt", "set/images/a/1.jpg", "set/images/b/2.jpg"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "all").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/evil", "set\\..\\evil", "C:evil"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_members_outside_are_refused(tmp_path, name, pack):
    (tmp_path / "in").mkdir()
    path = pack(tmp_path / "in" / "archive", {**FILES, name: b"evil"})
    with pytest.raises(ValueError, match=r"archive is refused: its member .*evil.* outside"):
        unpack(path, tmp_path / "in" / "out", "set")
    assert everything(tmp_path) == ["in/archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tar(tmp_path / "archive", {"set/link": b""}, type=kind, linkname="/etc")
    with pytest.raises(ValueError, match="'set/link' is a link or device"):
        unpack(path, tmp_path / "out")
    assert everything(tmp_path) == ["archive"]


def test_links_in_zip_archives_are_refused(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(ValueError, match="'set/link' is a link"):
        unpack(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w", "zip"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_truncated_archives_leave_nothing(tmp_path, kind, share):
    path = tmp_path / "archive"
    files = {f"set/{i}": os.urandom(2000) for i in range(6)}
    zipped(path, files) if kind == "zip" else tar(path, files, kind)
    length = 512 * 30 if kind == "w" else path.stat().st_size  # what follows the members of a plain tar is padding
    path.write_bytes(path.read_bytes()[: int(share * length)])
    with pytest.raises(ValueError, match="archive is truncated or damaged"):
        unpack(path, tmp_path / "out")
    assert everything(tmp_path) == ["archive"]


def test_a_plain_tar_cut_between_members_is_noticed(tmp_path):
    path = tar(tmp_path / "archive", {"a": b"x" * 512, "b": b"y" * 512}, "w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(ValueError, match="truncated or damaged"):
        unpack(path, tmp_path / "out")


def test_nothing_to_unpack(tmp_path):
    with pytest.raises(ValueError, match="archive has no files in the folder 'elsewhere'"):
        unpack(tar(tmp_path / "archive", FILES), tmp_path / "out", "elsewhere")


def test_a_name_that_comes_twice_is_damage(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(ValueError, match="truncated or damaged"):
        unpack(tmp_path / "archive", tmp_path / "out")


def test_the_faster_process_wins(tmp_path):
    path = tar(tmp_path / "archive", FILES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").write_bytes(b"1")
    unpack(path, tmp_path / "out")
    assert everything(tmp_path) == ["archive", "out/first"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_flipped_bits_are_noticed(tmp_path, kind):
    random = np.random.RandomState(0)
    files = {f"set/{i}": bytes(range(256)) * 4 + random.bytes(500) for i in range(4)}
    content = tar(tmp_path / "archive", files, kind).read_bytes()
    first = 10 + len(b"archive\0") if kind == "w:gz" else 0  # gzip's header has no checksum, and nothing of the content
    passed = 0
    for bit in random.choice(np.arange(8 * first, 8 * len(content)), 100, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / "archive").write_bytes(damaged)
        try:
            unpack(tmp_path / "archive", tmp_path / "out")
        except ValueError as error:
            assert "truncated or damaged" in str(error)  # noqa: PT017
            assert not (tmp_path / "out").exists()
        else:  # a bit that means nothing
            passed += 1
            assert all((tmp_path / "out" / name).read_bytes() == data for name, data in files.items())
            shutil.rmtree(tmp_path / "out")
    assert passed <= (0 if kind == "w:gz" else 2)
