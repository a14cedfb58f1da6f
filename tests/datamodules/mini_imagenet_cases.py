"""Builders of mini-ImageNet in miniature, in each of the forms in which people have it."""

import pickle
import shutil

import numpy as np

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
