"""mini-ImageNet in each of the forms in which people have it, on a small set of the same structure."""

import logging
import pickle

import numpy as np
import pytest

from lightning_gp.datamodules import MiniImageNetDataModule
from lightning_gp.datamodules.images import benchmark
from tests.datamodules.benchmark_cases import assert_no_leaks, contents, small
from tests.datamodules.mini_imagenet_cases import (
    LISTS,
    NAMES,
    TAKEN,
    class_folders,
    ilsvrc,
    ilsvrc_of_kaggle,
    images_class_folders,
    lists,
    one_folder,
    pickles,
    pickles_with_bytes,
    split_folders,
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "shipped_list", lambda name: LISTS)
    monkeypatch.setattr(MiniImageNetDataModule, "images_per_class", len(TAKEN))
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


FORMS = [
    split_folders,
    class_folders,
    images_class_folders,
    one_folder,
    ilsvrc,
    ilsvrc_of_kaggle,
    pickles,
    pickles_with_bytes,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_classes_and_images(tmp_path, form, caplog):
    form(tmp_path)
    found = contents(small(MiniImageNetDataModule, tmp_path))
    assert found == {
        split: {name: [(NAMES.index(name), number) for number in TAKEN] for name in names}
        for split, names in LISTS.items()
    }
    assert_no_leaks(found)
    assert not caplog.records


def test_episodes(tmp_path):
    pickles(tmp_path)
    data = small(MiniImageNetDataModule, tmp_path, iterations_per_epoch=2)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support[0].shape == (4, 2, 8, 8, 3)
    assert data.on_after_batch_transfer(batch, 0).query[0].shape == (4, 2, 3, 8, 8)


def test_the_cache_needs_no_parsing(tmp_path, monkeypatch):
    pickles(tmp_path)
    first = contents(small(MiniImageNetDataModule, tmp_path))
    monkeypatch.setattr("lightning_gp.datamodules.images.sources.pickled_images.load_plain", None)
    assert contents(small(MiniImageNetDataModule, tmp_path)) == first


def test_a_source_of_pickles_can_be_sent_to_other_processes(tmp_path):
    pickles(tmp_path)
    source = small(MiniImageNetDataModule, tmp_path).find_source()
    name = LISTS["val"][0]
    assert source.counts[name] == 3
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(name, 1), source.read(name, 1))
    assert copy.describe(name, 1) == source.describe(name, 1)
    assert copy.counts == source.counts


def test_without_lists_the_first_by_number_are_taken_and_that_is_said(tmp_path, caplog):
    ilsvrc(tmp_path)
    for split in LISTS:
        (tmp_path / f"{split}.csv").unlink()
    with caplog.at_level(logging.WARNING):
        found = contents(small(MiniImageNetDataModule, tmp_path))
    assert found["val"]["n01855672"] == [(3, 0), (3, 2), (3, 4)]
    assert "the first 3 of each are taken, which are not those of Ravi and Larochelle" in caplog.text


def test_other_images_in_the_lists(tmp_path):
    ilsvrc(tmp_path)
    lists(tmp_path, [1, 3, 4])
    assert contents(small(MiniImageNetDataModule, tmp_path))["val"]["n01855672"] == [(3, 1), (3, 3), (3, 4)]


def test_nothing_there(tmp_path):
    for download, said in ((False, "No mini-ImageNet in"), (True, "download=True cannot fetch it")):
        data = small(MiniImageNetDataModule, tmp_path, download=download)
        with pytest.raises(
            FileNotFoundError, match=rf"(?s){said}.*image-net\.org.*ILSVRC2012_img_train\.tar.*into root"
        ):
            data.prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 3}, "ways=3, but the val split of mini-ImageNet has 2 classes; choose ways <= 2"),
        ({"ways": 0}, "ways=0 must be"),
        ({"image_size": 0}, "image_size=0 must be"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        MiniImageNetDataModule("unused", **({"ways": 2} | arguments))


def test_too_many_shots_name_the_class(tmp_path):
    split_folders(tmp_path)
    data = small(MiniImageNetDataModule, tmp_path, queries=3)
    with pytest.raises(ValueError, match=r"1 \+ 3 = 4, but class 'n0"):
        data.setup("fit")
