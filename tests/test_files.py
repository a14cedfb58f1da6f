from __future__ import annotations

import pytest

from lightning_gp.files import replacing


def _fail_half_way(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "folder" / "result.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:
        _fail_half_way(temporary)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
