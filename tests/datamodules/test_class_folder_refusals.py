"""Folders of classes that cannot be used are refused, with the reason."""

import json

import pytest

from lightning_gp.datamodules import ClassFolderDataModule
from lightning_gp.datamodules.episodes.class_splits import random_splits
from lightning_gp.datamodules.images.class_folder import read_json_split
from tests.datamodules.image_cases import write_image, write_tree

SPLITS = ("train", "val", "test")


def small(root, **arguments):
    return ClassFolderDataModule(root, **({"ways": 2, "queries": 2, "image_size": 8} | arguments))


def test_one_class_in_two_splits_is_refused(tree):
    (tree / "test" / "ant").mkdir()
    write_image(tree / "test" / "ant" / "0.png", 9, 9)
    with pytest.raises(ValueError, match=r"Class 'ant' is in .*train and in .*test.*split_file"):
        small(tree).prepare_data()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("[1]", "must hold"),
        ('{"train": ["ant"], "val": ["bee"]}', "must hold"),
        ('{"train": ["ant"], "val": "bee", "test": []}', "must hold"),
        ('{"train": ["ant"], "val": ["bee"], "valid": ["bee"], "test": ["cat"]}', "must hold"),
    ],
)
def test_bad_json_is_refused(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match=rf"split\.json {message}"):
        read_json_split(tmp_path / "split.json")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": ["ant"], "val": ["bee"], "test": ["yak"]}, "class 'yak' of the test split has no images"),
        ({"train": ["ant"], "val": ["bee"], "test": ["ant"]}, "class 'ant' is listed twice, in the splits train and"),
    ],
)
def test_splits_that_do_not_fit_are_refused(tmp_path, split, message):
    write_tree(tmp_path, {"": ["ant", "bee", "cat"]})
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(ValueError, match=message):
        small(tmp_path, split_file=tmp_path / "split.json").setup("fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,a\n", r"columns \['file', 'label'\]; its first line must name \['filename', 'label'\]"),
        ("filename,label\nx.png,\n", r"train\.csv, line 2"),
        ("filename,label\nx.png,a\n", r"Image 'x\.png' of class 'a' in the train list is not in"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, message):
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(tmp_path, split_file=tmp_path).prepare_data()


def test_missing_folders_are_named(tmp_path, tree):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere; set root"):
        small(tmp_path / "nowhere").prepare_data()
    (tree / "val").rename(tree / "holdout")
    with pytest.raises(FileNotFoundError, match=r"no folder val or valid or validation.*split_file=.*fractions="):
        small(tree).prepare_data()
    (tree / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val has no folders with images"):
        small(tree).prepare_data()
    with pytest.raises(FileNotFoundError, match="There is no split_file"):
        small(tree, split_file=tmp_path / "none.json").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"has no train\.csv"):
        small(tree, split_file=tree).prepare_data()
    with pytest.raises(ValueError, match="two ways to split"):
        small(tree, split_file="x", fractions=(0.5, 0.2, 0.3))
    with pytest.raises(ValueError, match="add up to 1"):
        small(tree, fractions=(0.5, 0.2, 0.2)).prepare_data()
    with pytest.raises(ValueError, match="2 classes leave a split without any"):
        random_splits(["a", "b"], (0.6, 0.2, 0.2), 0)
