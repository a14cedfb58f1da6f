"""Any folder of classes."""

import json
import time
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_gp.datamodules import ClassFolderDataModule, FewShotDataModule
from lightning_gp.datamodules.episodes.class_splits import random_splits
from lightning_gp.datamodules.images.classes import ImageClassDataModule
from lightning_gp.datamodules.images.sources.image_source import Decoding, folder_source
from tests.datamodules.image_cases import THREE, identities, write_image, write_tree

SPLITS = ("train", "val", "test")


def small(root, **arguments):
    return ClassFolderDataModule(root, **({"ways": 2, "queries": 2, "image_size": 8} | arguments))


def classes_of(data):
    return {split: list(data.load_split(split).names) for split in SPLITS}


def test_a_tree_of_splits_in_one_line(tree):
    data = small(tree)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support[0].shape == (4, 2, 8, 8, 3)
    assert batch.support[0].dtype == torch.uint8
    assert data.on_after_batch_transfer(batch, 0).query[0].shape == (4, 4, 3, 8, 8)
    assert classes_of(data) == {split: [f"{split}/{name}" for name in names] for split, names in THREE.items()}
    for split, labels in (("train", {0, 1, 2}), ("val", {3, 4}), ("test", {5, 6})):
        episodes = data.episodes(split).__getitems__(range(20))
        assert {label for label, _ in identities(episodes.query[0])} == labels


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_folder(tree, name):
    (tree / "val").rename(tree / name)
    assert classes_of(small(tree))["val"] == ["val/dog", "val/elk"]


def test_one_tree_and_a_json_file(tmp_path):
    write_tree(tmp_path, {"": ["ant", "bee", "cat", "dog", "elk", "fox", "spare"]})
    split = {"train": ["cat", "ant"], "valid": ["bee", "dog"], "test": ["fox", "elk"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    data = small(tmp_path, split_file=tmp_path / "split.json")
    assert classes_of(data) == {"train": ["cat", "ant"], "val": ["bee", "dog"], "test": ["fox", "elk"]}
    assert len(data.images().names) == 6  # the class of no split is not decoded


@pytest.mark.parametrize("where", ["", "images/", "label"])
@pytest.mark.parametrize("form", ["three files", "one file"])
def test_lists_of_files(tmp_path, where, form):
    rows = {split: [] for split in SPLITS}
    for label, (split, name) in enumerate((split, name) for split, names in THREE.items() for name in names):
        for number in range(4):
            folder = f"{name}/" if where == "label" else where
            write_image(tmp_path / "data" / f"{folder}{name}{number}.png", label, number)
            rows[split].append(f"{name}{number}.png,{name}")
    lists = tmp_path / "lists"
    lists.mkdir()
    if form == "three files":
        for split in SPLITS:
            (lists / f"{split}.csv").write_text("\n".join(["filename,label", *rows[split]]) + "\n")
    else:
        lines = [f"{row},{split}" for split in SPLITS for row in rows[split]]
        lists = lists / "all.csv"
        lists.write_text("\n".join(["filename,label,split", *lines]) + "\n")
    data = small(tmp_path / "data", split_file=lists)
    assert classes_of(data) == THREE
    episodes = data.episodes("val").__getitems__(range(20))
    assert {label for label, _ in identities(episodes.support[0])} == {3, 4}


def test_fractions_share_the_classes_out(tmp_path):
    names = [f"class {i}" for i in range(10)]
    write_tree(tmp_path, {"": names}, images=3)

    def split(**arguments):
        return classes_of(small(tmp_path, fractions=(0.6, 0.2, 0.2), **arguments))

    first = split()
    assert [len(first[name]) for name in SPLITS] == [6, 2, 2]
    assert sorted(chain(*first.values())) == names
    assert split(seed=3) == first
    assert split(split_seed=3) != first


@given(
    count=st.integers(3, 60),
    shares=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_random_splits_never_share_a_class(count, shares, seed):
    names = [f"c{i}" for i in range(count)]
    fractions = [share / sum(shares) for share in shares]
    if min(np.diff([0, *(round(count * share) for share in np.cumsum(fractions))])) < 1:
        with pytest.raises(ValueError, match="without any"):
            random_splits(names, fractions, seed)
        return
    splits = random_splits(names, fractions, seed)
    assert sorted(chain(*splits.values())) == sorted(names)
    assert random_splits(names[::-1], fractions, seed) == splits


@given(
    counts=st.lists(st.integers(3, 6), min_size=6, max_size=12),
    shots=st.integers(1, 2),
    seed=st.integers(0, 50),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neither_classes_nor_images_leak(tmp_path_factory, counts, shots, seed):
    root = tmp_path_factory.mktemp("tree")
    for label, count in enumerate(counts):
        for number in range(count):
            write_image(root / f"class {label:02d}" / f"{number}.png", label, number, size=(3, 3))
    data = small(
        root, fractions=(0.34, 0.33, 0.33), split_seed=seed, seed=seed, shots=shots, queries=3 - shots, image_size=3
    )
    seen = {}
    for split in SPLITS:
        batch = data.episodes(split).__getitems__(range(30))
        for e in range(30):
            support, query = identities(batch.support[0][e]), identities(batch.query[0][e])
            assert len(set(support) | set(query)) == len(support) + len(query)
            assert len({label for label, _ in support}) == 2
        seen[split] = {label for label, _ in identities(batch.support[0]) + identities(batch.query[0])}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


@pytest.mark.parametrize("crop", [False, True])
def test_pixels_are_those_of_pil(tmp_path, crop):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    image = Image.fromarray(pixels)
    expected = image.resize((30 if crop else 20, 20), Image.Resampling.LANCZOS)
    expected = np.asarray(expected.crop((5, 0, 25, 20)) if crop else expected)
    decoded = folder_source(tmp_path).decode("a", 0, Decoding(20, crop))
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("1", "L", "P", "RGB", "RGBA")]
    + [(mode, "JPG") for mode in ("L", "RGB", "CMYK")]
    + [(mode, "bmp") for mode in ("1", "L", "P", "RGB")],
)
def test_every_kind_of_image_becomes_colour(tmp_path, mode, suffix):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (5, 5), (255, 255, 255)).convert(mode).save(tmp_path / "a" / f"0.{suffix}")
    decoded = folder_source(tmp_path).decode("a", 0, Decoding(4))
    assert decoded.shape == (4, 4, 3)
    assert decoded.min() >= 250


def test_hidden_files_and_strangers_are_passed_over(tree):
    (tree / "train" / "ant" / "._0.png").write_bytes(b"resource fork")
    (tree / "train" / "ant" / "notes.txt").write_text("nothing")
    (tree / "train" / ".trash").mkdir()
    (tree / "train" / "empty").mkdir()
    assert classes_of(small(tree))["train"] == ["train/ant", "train/bee", "train/cat"]


def test_the_cache_is_used_again_without_decoding(tree, monkeypatch):
    small(tree).prepare_data()
    assert len(list(tree.glob("class-folder-8px-*.npy"))) == 1
    monkeypatch.setattr("lightning_gp.datamodules.images.sources.image_source.FileSource.decode", None)
    images = small(tree).images()
    assert isinstance(images.images, np.memmap)
    assert images.images.shape == (28, 8, 8, 3)


def test_a_changed_file_or_size_is_another_cache(tree):
    before = small(tree).load_split("train")
    time.sleep(0.01)
    write_image(tree / "train" / "ant" / "0.png", 20, 20)
    assert not np.array_equal(small(tree).load_split("train").images, before.images)
    small(tree, image_size=6).prepare_data()
    small(tree, crop=True).prepare_data()
    assert len(list(tree.glob("class-folder-*.npy"))) == 4


def test_a_broken_image_is_named_and_leaves_no_cache(tree):
    path = tree / "val" / "elk" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"val/elk/2\.png is no readable image .*replace it by an intact copy"):
        small(tree).prepare_data()
    assert not list(tree.glob("*.npy")) + list(tree.glob("*.tmp")) + list(tree.glob("*.lock"))


def test_a_new_data_set_says_where_its_images_are_and_which_class_is_where(tree):
    class Animals(ImageClassDataModule):
        cache_name = "animals"

        def find_source(self):
            return folder_source(self.root, depth=2)

        def class_splits(self, classes):
            return {split: [name for name in classes if name.startswith(split)] for split in SPLITS}

    data = Animals(tree, ways=2, queries=2, image_size=8)
    data.setup("test")
    assert next(iter(data.test_dataloader())).query[0].shape == (4, 4, 8, 8, 3)
    assert list(tree.glob("animals-8px-*.npy"))


def test_the_base_class_says_what_is_missing(tmp_path):
    with pytest.raises(NotImplementedError, match="ImageClassDataModule must define find_source"):
        ImageClassDataModule(tmp_path).prepare_data()
    with pytest.raises(NotImplementedError, match="FewShotDataModule must define load_split"):
        FewShotDataModule().setup("fit")
