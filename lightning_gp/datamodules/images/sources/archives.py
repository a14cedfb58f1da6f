"""Unpacking archives so that nothing lands outside the chosen folder, and nothing half-unpacked under its name."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_CHUNK = 2**20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)  # last: ciphered


def unpack(archive: str | os.PathLike[str], target: str | os.PathLike[str], inside: str = "") -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip archive into the new folder ``target``.

    It is unpacked under a temporary name beside ``target`` and renamed when complete. If ``target`` exists by then,
    because another process was faster, that one stays.

    Args:
        archive: the file.
        target: the folder to make; its parent must exist.
        inside: if given, only what is in this folder of the archive is unpacked, without the folder's name.

    Raises:
        ValueError: naming the archive, if it is truncated, holds nothing to unpack, or has a member that is a link, a
            device, or would lie outside ``target``.
        OSError: if the archive cannot be read or ``target`` not be written.
    """
    archive, target = Path(archive), Path(target)
    wanted = tuple(inside.split("/")) if inside else ()
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        files = 0
        for name, content in _files(archive):
            parts = _safe_parts(archive, name)
            if parts[: len(wanted)] != wanted or len(parts) == len(wanted):
                continue
            place = temporary.joinpath(*parts[len(wanted) :])
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:  # a name that comes twice is an error
                shutil.copyfileobj(content, file)
            files += 1
        if not files:
            raise ValueError(
                f"{archive} has no files{f' in the folder {inside!r}' if inside else ''}; is it the right one?"
            )
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EEXIST, errno.ENOTDIR):
            raise  # the disk's; checksums that are wrong have no number
        raise ValueError(f"{archive} is truncated or damaged ({error}); fetch it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files, in the order of the archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if (info.external_attr >> 28) == 0xA:  # the Unix file type, in the upper bits
                    raise _unsafe(archive, info.filename, "is a link")
                if not info.is_dir():
                    with opened.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                _safe_parts(archive, member.name)
                continue
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is None:
                raise _unsafe(archive, member.name, "is a link or device")
            _safe_parts(archive, member.name)
            if hasattr(tarfile, "data_filter"):  # not in every Python 3.10 and 3.11
                tarfile.data_filter(member, str(archive.parent))
            yield member.name, stream
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile does not miss the end mark
            raise tarfile.ReadError("it has no end")
        while tar.fileobj.read(_CHUNK):  # to the end, where gzip, bzip2 and xz have their checksums
            pass


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or any(character in name for character in "\\:\0"):
        raise _unsafe(archive, name, "would be written outside of the folder")
    return parts


def _unsafe(archive: Path, name: str, reason: str) -> ValueError:
    return ValueError(
        f"{archive} is refused: its member {name!r} {reason}. Nothing was unpacked; delete the archive and get it from "
        "a source you trust."
    )
