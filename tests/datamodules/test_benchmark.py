"""The shipped class lists, and what the benchmark data sets have in common."""

import pytest

from lightning_gp import datamodules
from lightning_gp.datamodules.images.benchmark import check_complete, shipped_list

SIZES = {
    "mini_imagenet": (64, 16, 20),
    "tiered_imagenet": (351, 97, 160),
    "stanford_cars": (130, 17, 49),
    "cifar_fs": (64, 16, 20),
    "fc100": (60, 20, 20),
}
KINDS = {
    "MiniImageNetDataModule": 84,
    "TieredImageNetDataModule": 84,
    "StanfordCarsDataModule": 84,
    "CUBDataModule": 84,
    "CIFARFSDataModule": 32,
    "FC100DataModule": 32,
}


@pytest.mark.parametrize("name", SIZES)
def test_lists_have_the_published_sizes_and_share_no_class(name):
    lists = shipped_list(name)
    assert tuple(len(lists[split]) for split in ("train", "val", "test")) == SIZES[name]
    every = [entry for names in lists.values() for entry in names]
    assert len(set(every)) == len(every)


def test_mini_imagenet_is_the_list_of_ravi_and_larochelle():
    lists = shipped_list("mini_imagenet")
    assert {"n01532829", "n13133613"} <= set(lists["train"])
    assert {"n01855672", "n02091244"} <= set(lists["val"])
    assert {"n01930112", "n02110341"} <= set(lists["test"])


@pytest.mark.parametrize("kind", KINDS)
def test_public_names_and_defaults(kind, tmp_path):
    data = getattr(datamodules, kind)(tmp_path)
    assert (data.ways, data.shots, data.queries) == (5, 1, 15)
    assert data.decoding().shape == (KINDS[kind], KINDS[kind], 3)
    assert data.hparams["image_size"] == KINDS[kind]
    for use in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            use()


def test_completeness():
    check_complete("X", ["a"], 2, 4, {"a": 2, "b": 2})
    for arguments, message in [
        ((["a", "c"], None, None, {"a": 2}), "X is incomplete: 1 of its 2 classes have no images, among them 'c'"),
        ((["a"], None, None, {"a": 0}), "no images, among them 'a'"),
        ((["a"], 3, None, {"a": 2}), "class 'a' has 2 images, it should have 3"),
        ((["a"], None, 9, {"a": 4, "b": 2}), "it has 6 images in 2 classes, there should be 9 .*'b' with 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_complete("X", *arguments)


@pytest.mark.parametrize("name", ["MiniImageNet", "TieredImageNet", "CUB", "StanfordCars", "CIFARFS", "FC100"])
def test_hyperparameters_are_the_arguments_and_no_class_lists(name):
    data = getattr(datamodules, f"{name}DataModule")("unused", 3, shots=2)
    assert (data.hparams.root, data.hparams.ways, data.hparams.shots) == ("unused", 3, 2)
    assert data.hparams.image_size == data.image_size
    assert "classes" not in data.hparams
