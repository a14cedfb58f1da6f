"""tieredImageNet in each of the forms in which people have it, on a small set of the same structure."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from lightning_gp.datamodules import TieredImageNetDataModule
from lightning_gp.datamodules.images import benchmark, tiered_imagenet
from tests.datamodules.benchmark_cases import assert_no_leaks, contents, images_of, small
from tests.datamodules.image_cases import colour, write_image

LISTS = {
    "train": ["n01530575", "n01531178", "n01532829"],
    "val": ["n02071294", "n02077923"],
    "test": ["n02105056", "n02105162"],
}
NAMES = [name for names in LISTS.values() for name in names]
IMAGES = {name: 2 + i % 3 for i, name in enumerate(NAMES)}  # classes differ in size


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "shipped_list", lambda name: LISTS)
    monkeypatch.setattr(TieredImageNetDataModule, "total_images", sum(IMAGES.values()))
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def tree(folder, names):
    for name in names:
        for number in range(IMAGES[name]):
            write_image(folder / name / f"{name}_{number}.png", NAMES.index(name), number, (8, 8))


def split_folders(root):
    for split, names in LISTS.items():
        tree(root / split, names)


def ilsvrc(root):
    tree(root / "train", NAMES)
    write_image(root / "train" / "n00000001" / "n00000001_1.png", 20, 20)


def class_folders(root):
    tree(root, NAMES)


def encoded(label, number, flat):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour(label, number)).save(file, "PNG")
    array = np.frombuffer(file.getvalue(), np.uint8)
    return array if flat else array[:, None]  # older versions of OpenCV return a column


def pickles(root, flat=True, protocol=4, key=str):
    root.mkdir(parents=True, exist_ok=True)
    for split, names in LISTS.items():
        rows = [(NAMES.index(n), n, number) for number in range(4) for n in names if number < IMAGES[n]]
        labels = {
            key("label_specific"): np.array([names.index(n) for _, n, _ in rows], dtype=np.int32),
            key("label_general"): np.zeros(len(rows), dtype=np.int32),
            key("label_specific_str"): [key("crane") for _ in names],  # two classes of ImageNet are called so
            key("label_general_str"): [key("bird")],
        }
        images = [encoded(label, number, flat) for label, _, number in rows]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(images, protocol))
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels, protocol))


def older_pickles(root):
    pickles(root / "tiered-imagenet", flat=False, protocol=2, key=str.encode)


EXPECTED = {s: {n: [(NAMES.index(n), i) for i in range(IMAGES[n])] for n in names} for s, names in LISTS.items()}


@pytest.mark.parametrize("form", [split_folders, ilsvrc, class_folders, pickles, older_pickles])
def test_every_form_gives_the_same_classes_and_images(tmp_path, form):
    form(tmp_path)
    found = contents(small(TieredImageNetDataModule, tmp_path))
    assert images_of(found) == images_of(EXPECTED)  # so colours are red, green, blue, too
    assert_no_leaks(found)
    if "pickles" in form.__name__:
        assert list(found["val"]) == ["val/000 crane", "val/001 crane"]
        assert list(found["val"].values()) == list(EXPECTED["val"].values())
    else:
        assert found == EXPECTED


@pytest.mark.parametrize("form", [ilsvrc, pickles])
def test_the_cache_needs_no_listing_and_follows_the_files(tmp_path, form, monkeypatch):
    form(tmp_path)
    expected = contents(small(TieredImageNetDataModule, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(tiered_imagenet, "scan_folder", None)
        patch.setattr("lightning_gp.datamodules.images.sources.pickled_images.load_plain", None)
        assert contents(small(TieredImageNetDataModule, tmp_path)) == expected
    if form is ilsvrc:
        write_image(tmp_path / "train" / NAMES[0] / "more.png", 0, 9, (8, 8))
        with pytest.raises(ValueError, match="there should be"):
            contents(small(TieredImageNetDataModule, tmp_path))


def test_episodes(tmp_path):
    pickles(tmp_path)
    data = small(TieredImageNetDataModule, tmp_path, iterations_per_epoch=2)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).support[0].shape == (4, 2, 8, 8, 3)


def test_nothing_there(tmp_path):
    data = small(TieredImageNetDataModule, tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match=r"(?s)No tieredImageNet in .*download=True cannot .*image-net\.org"):
        data.prepare_data()


def rewrite(path, change):
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


DAMAGES = {
    "class missing": (ilsvrc, lambda r: shutil.rmtree(r / "train/n02071294"), "1 of its 7 classes .*'n02071294'"),
    "class empty": (ilsvrc, lambda r: [p.unlink() for p in (r / "train/n02071294").iterdir()], "classes .*'n02071294'"),
    "image missing": (
        ilsvrc,
        lambda r: (r / "train/n02071294/n02071294_0.png").unlink(),
        r"it has 19 images in 7 classes, there should be 20 \(the smallest class found is 'n02071294' with 1\)",
    ),
    "labels missing": (pickles, lambda r: (r / "val_labels.pkl").unlink(), r"val_labels\.pkl is missing beside others"),
    "images truncated": (
        pickles,
        lambda r: (r / "val_images_png.pkl").write_bytes((r / "val_images_png.pkl").read_bytes()[:300]),
        r"val_images_png\.pkl is truncated",
    ),
    "malicious": (
        pickles,
        lambda r: (r / "test_images_png.pkl").write_bytes(b"cnumpy\nload\n(S'x'\ntR."),
        r"test_images_png\.pkl is refused.*'numpy\.load'",
    ),
    "too few classes": (
        pickles,
        lambda r: rewrite(r / "val_labels.pkl", lambda c: c | {"label_specific": 0 * c["label_specific"]}),
        r"val_labels\.pkl has 1 classes, the val split should have 2",
    ),
    "too few images": (pickles, lambda r: rewrite(r / "val_images_png.pkl", lambda c: c[1:]), "no list of as many"),
    "no labels": (pickles, lambda r: rewrite(r / "val_labels.pkl", lambda c: {}), "a dict with 'label_specific'"),
    "no image": (
        pickles,
        lambda r: rewrite(r / "val_images_png.pkl", lambda c: [np.zeros(9, np.uint8), *c[1:]]),
        r"val_images_png\.pkl \(image 0\) is no readable image",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(tmp_path, case):
    form, damage, message = DAMAGES[case]
    form(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        contents(small(TieredImageNetDataModule, tmp_path))


def test_more_ways_than_classes():
    with pytest.raises(ValueError, match="ways=3, but the val split of tieredImageNet has 2 classes"):
        TieredImageNetDataModule("unused", ways=3)
