"""CIFAR-FS and FC100, on files of CIFAR-100's form with few images."""

import pickle
import shutil
import tarfile

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from lightning_gp.datamodules import CIFARFSDataModule, FC100DataModule
from lightning_gp.datamodules.images.benchmark import shipped_list
from tests.datamodules.benchmark_cases import small

CLASSES = sorted(name for names in shipped_list("cifar_fs").values() for name in names)
KINDS = pytest.mark.parametrize("kind", [CIFARFSDataModule, FC100DataModule])


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(CIFARFSDataModule, "images_per_class", 3)
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def write(root, protocol=2, key=str):
    """Two images per class in ``train``, one in ``test``; the corners say which is which, by channel."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for part, numbers in {"train": (0, 1), "test": (2,)}.items():
        rows = [(label, number) for number in numbers for label in range(100)][::-1]
        data = np.zeros((len(rows), 3, 32, 32), np.uint8)
        data[:, 0], data[:, 1] = (np.array(column)[:, None, None] for column in zip(*rows, strict=True))
        data[:, 2] = np.arange(32)  # the column
        content = {key("data"): data.reshape(-1, 3072), key("fine_labels"): [label for label, _ in rows]}
        (folder / part).write_bytes(pickle.dumps(content, protocol))
    names = {key("fine_label_names"): [key(name) for name in CLASSES], key("coarse_label_names"): []}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol))
    return root


def check(data):
    data.prepare_data()
    for split in ("train", "val", "test"):
        part = data.load_split(split)
        assert part.images.shape[1:] == (32, 32, 3)
        for name, start, count in zip(part.names, part.first_rows(), part.counts, strict=True):
            assert count == 3
            pixels = part.images[start : start + count]
            assert {tuple(pixel) for pixel in pixels[:, 5, 9].tolist()} == {
                (CLASSES.index(name), number, 9) for number in range(3)
            }


@KINDS
@pytest.mark.parametrize("form", ["folder", "bytes as keys", "archive"])
def test_every_form_gives_the_same_classes_and_images(tmp_path, kind, form):
    write(tmp_path, key=str.encode if form == "bytes as keys" else str)
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "cifar-100-python", "cifar-100-python")
        shutil.rmtree(tmp_path / "cifar-100-python")
    check(kind(tmp_path, shots=1, queries=2))


@pytest.mark.parametrize(("kind", "sizes"), [(CIFARFSDataModule, (64, 16, 20)), (FC100DataModule, (60, 20, 20))])
def test_splits_have_the_published_sizes_and_share_no_class(kind, sizes):
    classes = kind("unused").classes
    assert tuple(len(classes[split]) for split in ("train", "val", "test")) == sizes
    assert sorted(name for names in classes.values() for name in names) == CLASSES


def test_both_data_sets_share_a_cache(tmp_path):
    write(tmp_path)
    for kind in (CIFARFSDataModule, FC100DataModule):
        kind(tmp_path).prepare_data()
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_torchvision_reads_the_same(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    source = CIFARFSDataModule(tmp_path).find_source()
    theirs = CIFAR100(str(tmp_path), train=True)
    assert theirs.classes == list(source.counts)
    rows = [row for row, label in enumerate(theirs.targets) if label == 42]
    np.testing.assert_array_equal(source.read(CLASSES[42], 1), theirs.data[rows[1]])


def test_download_is_torchvisions():
    assert CIFARFSDataModule("unused").remote() == (CIFAR100.url, CIFAR100.tgz_md5)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Use download=True, or get cifar-100-python\.tar\.gz from"):
        small(CIFARFSDataModule, tmp_path).prepare_data()


def rewrite(path, change):
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes())), 2))


DAMAGES = {
    "file missing": (lambda f: (f / "test").unlink(), r"test is missing; remove .*download=True"),
    "truncated": (lambda f: (f / "train").write_bytes((f / "train").read_bytes()[:999]), "train is truncated"),
    "malicious": (lambda f: (f / "meta").write_bytes(b"cos\nsystem\n(S'true'\ntR."), r"meta is refused.*'os\.system'"),
    "no labels": (lambda f: rewrite(f / "train", lambda c: {"data": c["data"]}), "train .*with 'fine_labels'"),
    "wrong shape": (lambda f: rewrite(f / "train", lambda c: c | {"data": c["data"][:, 1:]}), "train is not a file of"),
    "label out of range": (
        lambda f: rewrite(f / "train", lambda c: c | {"fine_labels": [100, *c["fine_labels"][1:]]}),
        "train is not a file of CIFAR-100: .*label 100",
    ),
    "image missing": (
        lambda f: rewrite(f / "test", lambda c: {"data": c["data"][1:], "fine_labels": c["fine_labels"][1:]}),
        "'worm' has 2 images, it should have 3",
    ),
    "other classes": (
        lambda f: rewrite(f / "meta", lambda c: {"fine_label_names": ["x", *c["fine_label_names"][1:]]}),
        "1 of its 100 classes have no images, among them 'apple'",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(tmp_path, case):
    damage, message = DAMAGES[case]
    damage(write(tmp_path) / "cifar-100-python")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CIFARFSDataModule(tmp_path).prepare_data()


def test_more_ways_than_classes():
    with pytest.raises(ValueError, match="ways=17, but the val split of CIFAR-100 has 16 classes"):
        CIFARFSDataModule("unused", ways=17)
    assert FC100DataModule("unused", ways=17).ways == 17
