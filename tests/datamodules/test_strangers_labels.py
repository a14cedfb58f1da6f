"""The labels of a stranger's data set are those of its items."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_gp.datamodules import FewShotDataModule
from lightning_gp.datamodules.images.sources.dataset_source import labels_of


class Images(Dataset):
    """40 images of 10 classes, with a list of labels beside the items."""

    def __init__(self, change=lambda label: label, **attributes):
        self.targets, self.change = [i % 10 for i in range(40)], change
        self.reads = 0
        self.__dict__.update(attributes)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        self.reads += 1
        return np.full((6, 6), i % 256, np.uint8), self.change(self.targets[i])


ITEMS = {
    "the same": Images(),
    "every label changed": Images(lambda label: label + 1),
    "one class changed": Images(lambda label: 3 if label == 7 else label),
    "a transform": Images(lambda label: label // 2, target_transform=lambda label: label // 2),
    "floats": Images(float),
    "tensors": Images(torch.tensor),
    "a list of other things": Images(targets=[0.5] * 40, change=lambda label: 4),
}


@pytest.mark.parametrize("case", ITEMS)
@pytest.mark.parametrize("part", [None, range(0, 40, 3)])
def test_labels_are_those_of_the_items(case, part):
    data = ITEMS[case] if part is None else Subset(ITEMS[case], list(part))
    assert labels_of(data) == [int(data[i][1]) for i in range(len(data))]


def test_a_list_that_is_right_spares_reading():
    data = Images(targets=[i % 10 for i in range(4000)])
    type(data).__len__, length = (lambda self: len(self.targets)), type(data).__len__
    try:
        assert len(labels_of(data)) == 4000
    finally:
        type(data).__len__ = length
    assert data.reads <= 100


@pytest.mark.parametrize("label", [0.7, float("nan"), "cat", None, np.array([0, 1]), np.float32(0.5)])
def test_what_is_no_integer_is_refused(label):
    with pytest.raises(TypeError, match=r"Images has a label .*must be integers"):
        labels_of(Images(lambda _: label))


def test_a_float_tensor_of_labels_is_not_cut():
    with pytest.raises(TypeError, match=r"label 0\.7"):
        labels_of(TensorDataset(torch.zeros(4, 6, 6), torch.full((4,), 0.7)))


class Mixed(Images):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return (image if i % 2 == self.first else np.dstack([image] * 3)), label


@pytest.mark.parametrize("first", [0, 1])
def test_grey_and_colour_are_not_mixed(first, tmp_path):
    data = FewShotDataModule.from_dataset(
        Mixed(first=first), cache_dir=tmp_path, ways=2, queries=1, fractions=(0.4, 0.3, 0.3)
    )
    with pytest.raises(ValueError, match=r"Mixed\[\d+\].* cannot be used: the first image is .*convert all"):
        data.prepare_data()


@pytest.mark.parametrize("shape", [(12, 32), (4, 16), (3, 8, 64)])
def test_what_may_be_a_signal_needs_a_size(shape, tmp_path):
    data = TensorDataset(torch.zeros(40, *shape), torch.arange(40) % 10)
    options = {"cache_dir": tmp_path, "ways": 2, "queries": 1, "fractions": (0.4, 0.3, 0.3)}
    with pytest.raises(ValueError, match="image_size="):
        FewShotDataModule.from_dataset(data, **options)
    assert FewShotDataModule.from_dataset(data, image_size=8, **options).images().images.shape[:3] == (40, 8, 8)
