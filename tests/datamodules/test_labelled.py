"""Any labelled dataset."""

import pickle
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_gp.datamodules import FewShotDataModule, LabelledDataModule
from lightning_gp.datamodules.images.sources.dataset_source import DatasetSource, labels_of
from tests.datamodules.image_cases import colour, identities, write_tree

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))


class Coloured(Dataset):
    """10 classes, 4 images each, in turns; a subclass says in what form."""

    form = "pil"

    def __init__(self, labels=range(10)):
        self.items = [(label, number) for number in range(4) for label in labels]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        label, number = self.items[i]
        pixels = np.full((6, 6, 3), colour(label, number), dtype=np.uint8)
        forms = {
            "pil": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "float array": lambda: (pixels / 255).astype(np.float32),
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "float tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        }
        return forms[self.form](), label


def small(dataset, **arguments):
    arguments = {"ways": 2, "queries": 2, "fractions": (0.4, 0.3, 0.3)} | arguments
    return FewShotDataModule.from_dataset(dataset, **arguments)


@pytest.mark.parametrize("form", ["pil", "array", "float array", "tensor", "float tensor"])
def test_items_of_every_form_become_the_same_pixels(form, monkeypatch):
    monkeypatch.setattr(Coloured, "form", form)
    data = small(Coloured())
    data.setup()
    seen = {}
    for split, count in zip(SPLITS, (4, 3, 3), strict=True):
        names = data.load_split(split).names
        assert len(names) == count
        batch = data.episodes(split).__getitems__(range(40))
        assert batch.support[0].shape == (40, 2, 6, 6, 3)
        found = identities(batch.support[0]) + identities(batch.query[0])
        assert {str(label) for label, _ in found} == set(names)
        assert {number for _, number in found} == {0, 1, 2, 3}
        seen[split] = set(names)
    assert set(chain(*seen.values())) == {str(label) for label in range(10)}


def test_a_run_through_lightnings_hooks_saves_no_data():
    data = small(Coloured())
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).query[0].dtype == torch.uint8
    assert "dataset" not in data.hparams
    assert data.hparams["fractions"] == (0.4, 0.3, 0.3)


def test_grey_tensors_and_their_size():
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 7, 7)
    data = small(TensorDataset(images, torch.arange(40) % 10))
    data.setup("fit")
    assert data.image_size == 7
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.support[0].shape == (4, 2, 1, 7, 7)
    assert small(TensorDataset(images, torch.arange(40) % 10), image_size=5).images().images.shape == (40, 5, 5)


def test_torchvision_folders_with_their_names(tmp_path):
    from torchvision.datasets import ImageFolder

    write_tree(tmp_path / "data", {"": ["ant", "bee", "cat", "dog", "elk", "fox"]}, images=3)
    dataset = ImageFolder(tmp_path / "data")
    split = {"train": ["cat", "fox"], "val": ["ant", 1], "test": ["dog", "elk"]}
    data = small(dataset, split=split, queries=1)
    assert data.load_split("val").names == ["ant", "bee"]
    batch = data.episodes("train").__getitems__(range(20))
    assert {label for label, _ in identities(batch.query[0])} == {2, 5}
    path = tmp_path / "data" / "dog" / "1.png"
    content = path.read_bytes()
    assert small(dataset, split=split).find_source().stamp() == data.find_source().stamp()
    path.write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"ImageFolder\[10\] \(.*dog/1\.png\).* is no readable image"):
        small(dataset, split=split).prepare_data()


def test_a_dataset_for_each_split(tmp_path):
    parts = {"train": Coloured(range(4)), "val": Coloured(range(4, 7)), "test": Coloured(range(7, 10))}
    data = small(parts)
    assert data.load_split("val").names == ["val/4", "val/5", "val/6"]
    batch = data.episodes("test").__getitems__(range(20))
    assert {label for label, _ in identities(batch.query[0])} == {7, 8, 9}


def test_datasets_that_are_split_by_image_are_refused(tmp_path):
    class Named(Coloured):
        classes = tuple("abcdefghij")

    with pytest.raises(ValueError, match=r"train and val datasets have 10 classes in common, such as 'a'.*fractions"):
        small({split: Named() for split in SPLITS}).prepare_data()
    assert not (tmp_path / "cache").exists()  # nothing was decoded


def test_subsets_and_labels_kept_apart():
    subset = Subset(TensorDataset(torch.zeros(6, 2, 2), torch.tensor([3, 3, 4, 4, 5, 5])), [5, 0, 2])
    assert labels_of(subset) == [5, 3, 4]
    named = TensorDataset(torch.zeros(6, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert list(DatasetSource({"": named}, ["x", "y", "z"]).counts.items()) == [("x", 2), ("y", 2), ("z", 2)]


def test_the_cache_is_keyed_by_content_and_shared():
    class Other(Coloured):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image.rotate(90).point(lambda v: 255 - v), label

    Other.__name__ = "Coloured"
    a, again, b = (small(dataset) for dataset in (Coloured(), Coloured(), Other()))
    assert a.find_source().stamp() == again.find_source().stamp()
    assert a.find_source().stamp() != b.find_source().stamp()


def test_a_source_can_be_sent_to_another_process(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Coloured", Coloured)  # importlib mode: pickle finds it by this
    source = DatasetSource({"": TensorDataset(torch.zeros(6, 2, 2), torch.arange(6) % 2)}, None)
    assert pickle.loads(pickle.dumps(source)).counts == {"0": 3, "1": 3}


class Normalized(Coloured):
    def __getitem__(self, i):
        return torch.full((3, 4, 4), -1.0), self.items[i][0]


class Random(Coloured):
    def __getitem__(self, i):
        return torch.rand(3, 4, 4), self.items[i][0]


class Words(Coloured):
    def __getitem__(self, i):
        return super().__getitem__(i)[0], "cat"


class Triples(Coloured):
    def __getitem__(self, i):
        return (*super().__getitem__(i), 0)


class Flat(Coloured):
    def __getitem__(self, i):
        return torch.zeros(9), 0


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Normalized(), ValueError, r"from -1 to -1, they must be in \[0, 1\]; leave out the normalisation"),
        (Random(), ValueError, r"returns another image each time .* random transform.*horizontal_flip"),
        (Words(), TypeError, "label of type str; labels must be integers"),
        (Triples(), TypeError, r"items must be pairs \(image, label\)"),
        (Flat(), ValueError, r"shape \(9,\) and dtype float32; it must be a PIL image"),
        (iter([]), TypeError, "must be a map-style dataset"),
        ([], TypeError, "must be a map-style dataset"),
        ({"train": Coloured()}, ValueError, "a dict must have train, val, test"),
    ],
)
def test_datasets_that_cannot_be_used_are_refused(dataset, error, message):
    with pytest.raises(error, match=message):
        small(dataset).prepare_data()


def test_split_of_unknown_classes_is_refused():
    split = {"train": [0, 1], "val": [2, 3], "test": [99]}
    with pytest.raises(ValueError, match="class '99' of the test split has no images"):
        LabelledDataModule(Coloured(), split=split, ways=2, queries=1).setup("test")
