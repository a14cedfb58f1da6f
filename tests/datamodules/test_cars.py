"""Stanford Cars, all 196 classes of it, with one small image in each half."""

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lightning_gp.datamodules import StanfordCarsDataModule
from lightning_gp.datamodules.images import cars
from tests.datamodules.benchmark_cases import small

NUMBERS = range(1, 197)
NAMES = [f"Make Model {number}" if number != 7 else "Ram C/V Van" for number in NUMBERS]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cars, "_TOTAL", {"all": 392, "train": 196})
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


def mat(path, rows):
    """``annotations`` as a struct array of MATLAB."""
    kinds = [(key, object) for key in rows[0]]
    array = np.empty((1, len(rows)), dtype=kinds)
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": array})


def picture(path, number, half):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number, half, 7)).save(path)


def order(half):
    """Files are not in order of class."""
    return [(1 + (number * (5 if half else 11)) % 196, f"{number:05d}.png") for number in NUMBERS]


def halves(folder, devkit="devkit", nested=False):
    for half, name in enumerate(("cars_train", "cars_test")):
        place = folder / name / name if nested else folder / name
        for number, file in order(half):
            picture(place / file, number, half)
        rows = [{"bbox_x1": 1, "class": number, "fname": file} for number, file in order(half)]
        mat(folder / devkit / "cars_train_annos.mat" if half == 0 else folder / "cars_test_annos_withlabels.mat", rows)
    savemat(folder / devkit / "cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})


def torchvision_layout(root):
    halves(root / "stanford_cars")


def flat_layout(root):
    halves(root, ".")


def nested_layout(root):
    halves(root, "car_devkit/devkit", nested=True)


def one_folder(root):
    rows = []
    for half in range(2):
        for number, file in order(half):
            picture(root / "car_ims" / f"{half}{file}", number, half)
            rows.append({"relative_im_path": f"car_ims/{half}{file}", "class": number, "test": half})
    mat(root / "cars_annos.mat", rows)
    savemat(root / "cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})


def pixels(data):
    """split → class name → sorted (class, half) of its images."""
    data.prepare_data()
    found = {}
    for split in ("train", "val", "test"):
        part = data.load_split(split)
        found[split] = {
            name: sorted(map(tuple, part.images[start : start + count, 0, 0, :2].tolist()))
            for name, start, count in zip(part.names, part.first_rows(), part.counts, strict=True)
        }
    return found


@pytest.mark.parametrize("form", [torchvision_layout, flat_layout, nested_layout, one_folder])
def test_every_form_gives_the_same_classes_and_images(tmp_path, form):
    form(tmp_path)
    found = pixels(small(StanfordCarsDataModule, tmp_path))
    classes = cars.shipped_list("stanford_cars")
    assert {split: len(names) for split, names in classes.items()} == {"train": 130, "val": 17, "test": 49}
    for split, numbers in classes.items():
        assert found[split] == {f"{n:03d}.{NAMES[n - 1]}": [(n, 0), (n, 1)] for n in numbers}
    assert len({name for part in found.values() for name in part}) == 196


@pytest.mark.parametrize("form", [torchvision_layout, one_folder])
def test_the_training_half_alone(tmp_path, form):
    form(tmp_path)
    if form is torchvision_layout:
        (tmp_path / "stanford_cars/cars_test_annos_withlabels.mat").unlink()
    found = pixels(small(StanfordCarsDataModule, tmp_path, images="train"))
    assert {image[1] for part in found.values() for images in part.values() for image in images} == {0}


def test_without_names_classes_are_numbers(tmp_path):
    flat_layout(tmp_path)
    (tmp_path / "cars_meta.mat").unlink()
    assert list(pixels(small(StanfordCarsDataModule, tmp_path))["val"]) == [
        f"{number:03d}" for number in cars.shipped_list("stanford_cars")["val"]
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot fetch it.*vision/issues/7545.*root/stanford_cars"):
        small(StanfordCarsDataModule, tmp_path, download=True).prepare_data()


def outside(root):
    """A label file that points elsewhere."""
    picture(root.parent / "elsewhere" / "secret.png", 1, 0)
    rows = [{"class": n, "fname": f"../../elsewhere/{'secret.png' if n == 1 else f}"} for n, f in order(0)]
    mat(root / "cars_train_annos.mat", rows)


DAMAGES = {
    "labels missing": (lambda r: (r / "cars_train_annos.mat").unlink(), r"cars_train_annos\.mat is missing"),
    "test labels missing": (
        lambda r: (r / "cars_test_annos_withlabels.mat").unlink(),
        r'cars_test_annos_withlabels\.mat is missing, or use images="train"',
    ),
    "test images missing": (lambda r: shutil.rmtree(r / "cars_test"), r'cars_test is missing, or use images="train"'),
    "labels truncated": (
        lambda r: (r / "cars_train_annos.mat").write_bytes((r / "cars_train_annos.mat").read_bytes()[:3000]),
        r"cars_train_annos\.mat is damaged",
    ),
    "labels of something else": (lambda r: savemat(r / "cars_train_annos.mat", {"x": 1}), "has no 'annotations'"),
    "labels without names": (
        lambda r: mat(r / "cars_train_annos.mat", [{"class": 1, "x": 2}]),
        r"cars_train_annos\.mat is not the label file",
    ),
    "names of something else": (
        lambda r: savemat(r / "cars_meta.mat", {"class_names": np.array([["a", "b"]], dtype=object)}),
        r"cars_meta\.mat has 2 class names",
    ),
    "image missing": (lambda r: (r / "cars_train/00009.png").unlink(), r"names image .*00009\.png of class 100"),
    "class out of range": (
        lambda r: mat(r / "cars_train_annos.mat", [{"class": 197, "fname": "00001.png"}]),
        "of class 197",
    ),
    "too few labels": (
        lambda r: mat(r / "cars_train_annos.mat", [{"class": n, "fname": f} for n, f in order(0)[1:]]),
        "it has 391 images in 196 classes, there should be 392",
    ),
    "label file that points elsewhere": (outside, r"cars_train.secret\.png of class 1, which is not there"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(tmp_path, case):
    damage, message = DAMAGES[case]
    flat_layout(tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pixels(small(StanfordCarsDataModule, tmp_path / "data"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "test"}, "images='test' is unknown; use 'all' or 'train'"),
        ({"ways": 18}, "ways=18, but the val split of Stanford Cars has 17 classes"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        StanfordCarsDataModule("unused", **arguments)
