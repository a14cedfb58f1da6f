"""Split lists as spreadsheets and Windows write them; small classes left out."""

import numpy as np
import pytest

from lightning_gp.commands.data import print_report
from lightning_gp.datamodules import ClassFolderDataModule
from tests.datamodules.image_cases import THREE, identities, write_tree

SMALL = {"ways": 2, "shots": 1, "queries": 1, "image_size": 6}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "; "])
def test_lists_of_every_spelling(tmp_path, separator, slash, end, mark):
    write_tree(tmp_path, {"images": [name for names in THREE.values() for name in names]})
    rows = [("filename", "label", "split")]
    for split, names in THREE.items():
        rows += [(f"{name}{slash}{i}.png", name, split) for name in names for i in range(4)]
    text = mark + end.join(separator.join(row) for row in rows) + end
    (tmp_path / "split.csv").write_bytes(text.encode())
    data = ClassFolderDataModule(tmp_path, split_file=tmp_path / "split.csv", **SMALL)
    assert data.load_split("val").names == THREE["val"]
    assert {label for label, _ in identities(data.load_split("val").images)} == set(range(7))


def test_json_with_a_byte_order_mark(tmp_path):
    import json

    write_tree(tmp_path, {"": [name for names in THREE.values() for name in names]})
    (tmp_path / "split.json").write_text("\ufeff" + json.dumps(THREE), "utf-8")
    assert ClassFolderDataModule(tmp_path, tmp_path / "split.json", **SMALL).load_split("test").names == THREE["test"]


def test_small_classes_of_a_folder_are_left_out_and_counted(tmp_path, capsys):
    tree = write_tree(tmp_path, THREE | {"train": ["ant", "bee", "cat", "small"]})
    for path in (tree / "train" / "small").iterdir():
        if path.name != "0.png":
            path.unlink()
    data = ClassFolderDataModule(tree, min_images=np.int64(2), **SMALL)
    data.prepare_data()
    data.setup("fit")
    assert data.episodes("train").data.names == ["train/ant", "train/bee", "train/cat"]
    assert print_report(data) == 0
    assert "1 classes have fewer than min_images=2 images and are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="ways=2, but the val split has 0 classes"):
        ClassFolderDataModule(tree, min_images=99, **SMALL | {"ways": 2}).episodes("val")
