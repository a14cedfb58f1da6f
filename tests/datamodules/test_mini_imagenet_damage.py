"""Whatever is broken or missing in mini-ImageNet is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lightning_gp.datamodules import MiniImageNetDataModule
from lightning_gp.datamodules.images import benchmark
from tests.datamodules.benchmark_cases import contents, small
from tests.datamodules.mini_imagenet_cases import LISTS, TAKEN, arrays, dump, ilsvrc, pickles, split_folders


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "shipped_list", lambda name: LISTS)
    monkeypatch.setattr(MiniImageNetDataModule, "images_per_class", len(TAKEN))
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def damage_list(root, line):
    (root / "val.csv").write_text(f"filename,label\n{line}\n")


DAMAGES = {
    "class missing": (
        split_folders,
        lambda r: shutil.rmtree(r / "val/n01855672"),
        "1 of its 7 classes have no images, among them 'n01855672'",
    ),
    "image missing": (
        split_folders,
        lambda r: next((r / "val/n01855672").iterdir()).unlink(),
        "'n01855672' has 2 images, it should have 3",
    ),
    "class in another split's folder": (
        split_folders,
        lambda r: shutil.move(r / "val/n01855672", r / "train"),
        "'n01855672'",
    ),
    "no image": (
        split_folders,
        lambda r: (r / "val/n01855672/n0185567200000001.jpg").write_bytes(b"x"),
        r"n0185567200000001\.jpg is no readable",
    ),
    "list of another split": (
        ilsvrc,
        lambda r: damage_list(r, "n0153282900000001.jpg,n01532829"),
        r"val\.csv has the line .*not a list of the val split",
    ),
    "list without labels": (ilsvrc, lambda r: damage_list(r, "n0153282900000001.jpg"), r"val\.csv has the line"),
    "listed image missing": (
        ilsvrc,
        lambda r: damage_list(r, "n0185567200000009.jpg,n01855672"),
        "name image '9'.* only 5 images",
    ),
    "short list": (
        ilsvrc,
        lambda r: damage_list(r, "n0185567200000001.jpg,n01855672"),
        "1 of its 7 classes have no images, among them 'n02091244'",
    ),
    "strange name": (
        ilsvrc,
        lambda r: (r / "train/n01532829/cover.png").write_bytes(b""),
        "'cover.png' is not called like an image of ImageNet",
    ),
    "pickle missing": (pickles, lambda r: (r / "mini-imagenet-cache-val.pkl").unlink(), r"cache-val\.pkl is missing"),
    "pickle truncated": (
        pickles,
        lambda r: (r / "mini-imagenet-cache-val.pkl").write_bytes(
            (r / "mini-imagenet-cache-val.pkl").read_bytes()[:-9]
        ),
        r"cache-val\.pkl is truncated or damaged",
    ),
    "pickle malicious": (
        pickles,
        lambda r: (r / "mini-imagenet-cache-val.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR."),
        r"cache-val\.pkl is refused.*'os\.system'",
    ),
    "pickle of a list": (
        pickles,
        lambda r: dump(r, "val", [1]),
        r"cache-val\.pkl is of an unknown kind: expected a dict",
    ),
    "pickle without classes": (
        pickles,
        lambda r: dump(r, "val", {"image_data": arrays("val")[0]}),
        "expected a dict with 'class_dict'",
    ),
    "pickle of floats": (
        pickles,
        lambda r: dump(r, "val", {"image_data": np.zeros((6, 8, 8, 3)), "class_dict": arrays("val")[1]}),
        "no uint8",
    ),
    "pickle of another split": (
        pickles,
        lambda r: dump(r, "val", dict(zip(("image_data", "class_dict"), arrays("train"), strict=True))),
        r"does not hold the val classes .* among them 'n01532829'",
    ),
    "image in two classes": (
        pickles,
        lambda r: dump(r, "val", {"image_data": arrays("val")[0], "class_dict": {n: [0, 1, 2] for n in LISTS["val"]}}),
        "names an image twice",
    ),
    "image not there": (
        pickles,
        lambda r: dump(
            r,
            "val",
            {
                "image_data": arrays("val")[0],
                "class_dict": {n: [i, i + 1, i + 2] for i, n in zip((1, 4), LISTS["val"], strict=True)},
            },
        ),
        "one that is not there",
    ),
    "image missing in a pickle": (
        pickles,
        lambda r: dump(
            r,
            "val",
            {
                "image_data": arrays("val")[0],
                "class_dict": {n: [i, i + 1] for i, n in zip((0, 3), LISTS["val"], strict=True)},
            },
        ),
        "'n01855672' has 2 images",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(tmp_path, case):
    form, damage, message = DAMAGES[case]
    form(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        contents(small(MiniImageNetDataModule, tmp_path))
    assert not [path for path in Path(tmp_path).iterdir() if path.suffix in (".npy", ".tmp")]
