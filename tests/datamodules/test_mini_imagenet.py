"""mini-ImageNet in each of the forms in which people have it, on a small set of the same structure."""

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightning_gp.datamodules import MiniImageNetDataModule, benchmark
from tests.datamodules.benchmark_cases import assert_no_leaks, contents, small
from tests.datamodules.image_cases import colour, write_image

LISTS = {
    "train": ["n01532829", "n01558993", "n01704323"],
    "val": ["n01855672", "n02091244"],
    "test": ["n01930112", "n01981276"],
}
NAMES = [name for names in LISTS.values() for name in names]
ILSVRC_NUMBERS = [7, 100, 23, 4001, 9]  # of the images 0 … 4; in order of number: 0, 4, 2, 1, 3
TAKEN = [0, 2, 4]  # those in mini-ImageNet: places 1, 2, 3
PLACES = {0: 1, 4: 2, 2: 3, 1: 4, 3: 5}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "shipped_list", lambda name: LISTS)
    monkeypatch.setattr(MiniImageNetDataModule, "images_per_class", len(TAKEN))
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def listed_name(name, number):
    return f"{name}{PLACES[number]:08d}.jpg"


def split_of(name):
    return next(split for split, names in LISTS.items() if name in names)


def each(numbers=TAKEN):
    return [(label, name, number) for label, name in enumerate(NAMES) for number in numbers]


def lists(root, numbers=TAKEN, header=True):
    for split, names in LISTS.items():
        rows = ["filename,label"] * header + [f"{listed_name(n, i)},{n}" for n in names for i in numbers]
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")


def png(path, label, number):
    """PNG under any name: JPEG would change the colours, which say which image it is."""
    write_image(path.with_suffix(".png"), label, number, (8, 8))
    path.with_suffix(".png").rename(path)


def split_folders(root):
    for label, name, number in each():
        png(root / split_of(name) / name / listed_name(name, number), label, number)


def class_folders(root):
    for label, name, number in each():
        png(root / name / listed_name(name, number), label, number)


def images_class_folders(root):
    class_folders(root / "images")


def one_folder(root):
    for label, name, number in each():
        png(root / "images" / listed_name(name, number), label, number)
    lists(root)


def ilsvrc(root, folder="train"):
    for label, name, number in each(range(5)):
        png(root / folder / name / f"{name}_{ILSVRC_NUMBERS[number]}.JPEG", label, number)
    png(root / folder / "n00000001" / "n00000001_1.JPEG", 20, 1)  # the other 900 classes
    lists(root)


def ilsvrc_of_kaggle(root):
    ilsvrc(root, "ILSVRC/Data/CLS-LOC/train")
    for split in LISTS:
        shutil.move(root / f"{split}.csv", root / f"{split}.tmp")
    lists(root, header=False)


def arrays(split):
    rows = [(label, name, number) for label, name, number in each() if name in LISTS[split]]
    rows = rows[::-1]  # no order can be relied on
    images = np.stack([np.full((8, 8, 3), colour(label, number), np.uint8) for label, _, number in rows])
    return images, {name: [i for i, row in enumerate(rows) if row[1] == name] for name in LISTS[split]}


def dump(root, split, content, protocol=4):
    root.mkdir(parents=True, exist_ok=True)
    (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, protocol))


def pickles(root):
    for split in LISTS:
        images, rows = arrays(split)
        dump(root, split, {"image_data": images, "class_dict": rows})


def pickles_with_bytes(root):
    for split in LISTS:
        images, rows = arrays(split)
        places = {name.encode(): np.array(numbers) for name, numbers in rows.items()}
        dump(root, split, {b"image_data": images[None], b"class_dict": places}, protocol=2)


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
    monkeypatch.setattr("lightning_gp.datamodules.sources.pickled_images.load_plain", None)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 3}, "ways=3, but the val split of mini-ImageNet has 2 classes; choose ways <= 2"),
        ({"ways": 0}, "ways=0 is too small"),
        ({"image_size": 0}, "image_size=0 is too small"),
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
