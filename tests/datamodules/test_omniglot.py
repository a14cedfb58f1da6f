"""Omniglot, on a small tree made here and on the real data."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lightning_gp.datamodules import OmniglotDataModule
from lightning_gp.datamodules.images import image_cache, omniglot

NAMES = {
    "train": ["Alpha/character01", "Alpha/character02", "Beta/character01"],
    "val": ["Beta/character02", "Beta/character03"],
    "test": ["Gamma/character01", "Gamma/character02"],
}


def drawing(number):
    """A bar in the upper left, different for each number, black on white as in the real data."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).rectangle((10, 10, 20 + number % 30, 60 - number % 17), fill=0)
    return image


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("omniglot")
    for i, name in enumerate(sorted(name for names in NAMES.values() for name in names)):
        part = "images_evaluation" if name.startswith("Gamma") else "images_background"
        folder = root / part / name
        folder.mkdir(parents=True)
        for j in range(20):
            drawing(20 * i + j).save(folder / f"{i:04d}_{j + 1:02d}.png")
    return root


@pytest.fixture
def root(pristine, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(omniglot, "vinyals_split", lambda: NAMES)
    monkeypatch.setattr(omniglot, "_RANDOM_SIZES", {"train": 3, "val": 2, "test": 2})
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)
    return shutil.copytree(pristine, tmp_path / "data")


def small(root, **arguments):
    return OmniglotDataModule(root, **({"ways": 2, "environments_per_batch": 3, "iterations_per_epoch": 2} | arguments))


def test_a_batch_is_uint8_on_the_way_and_float_on_arrival(root):
    data = small(root)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support[0].shape == (3, 2, 28, 28)
    assert batch.support[0].dtype == torch.uint8
    (xs, _), (xq, yq) = data.on_after_batch_transfer(batch, 0)
    assert xs.shape == (3, 2, 1, 28, 28)
    assert xq.shape == (3, 30, 1, 28, 28)
    assert xq.dtype == torch.float32
    assert yq.shape == (3, 30)
    assert float(xq.max()) == 1.0  # ink
    assert float(xq.min()) == 0.0  # paper
    assert float(xq.mean()) < 0.5
    assert torch.equal(xs[:, :, 0], batch.support[0] / 255)
    assert data.ways == 2


def test_images_take_the_dtype_of_the_module(root):
    data = small(root)
    data.setup("test")
    module = torch.nn.Linear(2, 2).double()
    data.trainer = type("Fake", (), {"distributed_sampler_kwargs": None, "lightning_module": module})()
    batch = next(iter(data.test_dataloader()))
    assert data.on_after_batch_transfer(batch, 0).query[0].dtype == torch.float64


def test_pixels_are_the_inverted_lanczos_reduction(root):
    images = small(root).load_split("train").images.reshape(-1, 20, 28, 28)
    with Image.open(root / "images_background/Alpha/character02/0001_05.png") as image:
        expected = 255 - np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(images[1, 4], expected)


def test_rotations_are_further_classes(root):
    data = small(root)
    train, val = data.load_split("train"), data.load_split("val")
    assert len(train.counts) == 12
    assert len(val.counts) == 2
    images = train.images.reshape(4, 3, 20, 28, 28)
    for turns in range(1, 4):
        np.testing.assert_array_equal(images[turns], np.rot90(images[0], turns, axes=(2, 3)))
    assert train.names[3] == "Alpha/character01@90"
    assert len(set(train.names)) == 12
    assert len(small(root, rotations=False).load_split("train").counts) == 3
    assert len(small(root, eval_rotations=True).load_split("test").counts) == 8


@pytest.mark.parametrize("split", ["vinyals", "random1200"])
def test_splits_share_no_class(root, split):
    data = small(root, split=split)
    images = {name: {row.tobytes() for row in data.load_split(name).images} for name in NAMES}
    assert images["train"].isdisjoint(images["val"] | images["test"])
    assert images["val"].isdisjoint(images["test"])
    assert sum(len(names) for names in data.classes.values()) == 7


def test_random_split_depends_on_its_own_seed(root):
    def train(**seeds):
        return small(root, split="random1200", **seeds).classes["train"]

    assert train() == train(seed=5)
    assert any(train() != train(split_seed=seed) for seed in range(1, 5))


def test_cache_is_reused_and_follows_the_files(root, monkeypatch):
    images = small(root).load_split("train").images
    caches = sorted(root.glob("omniglot-28px-*.npy"))
    assert len(caches) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode_all", lambda *arguments: iter(()))
        np.testing.assert_array_equal(small(root).load_split("train").images, images)
    drawing(123).save(root / "images_background/Alpha/character01/0000_01.png")
    changed = small(root).load_split("train").images
    assert not np.array_equal(changed, images)
    assert len(list(root.glob("omniglot-28px-*.npy"))) == 2
    assert small(root, image_size=14).load_split("val").images.shape[1:] == (14, 14)


def test_zip_archives_are_read_in_place(root, tmp_path):
    expected = small(root).load_split("train").images
    archives = tmp_path / "zips" / "omniglot-py"
    archives.mkdir(parents=True)
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(archives / f"{part}.zip", "w") as archive:
            for path in sorted((root / part).rglob("*.png")):
                archive.write(path, path.relative_to(root))
            archive.writestr("../escape.png", b"outside")
    np.testing.assert_array_equal(small(archives.parent, cache_dir=tmp_path / "c").load_split("train").images, expected)
    assert not list(tmp_path.rglob("escape.png"))
    content = (archives / "images_background.zip").read_bytes()
    (archives / "images_background.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"images_background\.zip is truncated"):
        small(archives.parent).prepare_data()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected images_background/.*download=True"):
        OmniglotDataModule(tmp_path / "nowhere").prepare_data()


def test_download_fetches_both_parts(pristine, root, tmp_path, monkeypatch):
    import shutil

    from torchvision import datasets

    asked = []

    def fake(folder, background, download):
        part = "images_background" if background else "images_evaluation"
        shutil.copytree(pristine / part, Path(folder) / "omniglot-py" / part)
        asked.append((part, download))

    monkeypatch.setattr(datasets, "Omniglot", fake)
    data = small(tmp_path / "fetched", download=True)
    data.prepare_data()
    data.prepare_data()
    assert asked == [("images_background", True), ("images_evaluation", True)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "0000_07.png").unlink(), r"'Alpha/character01' has 19 images .* should have 20"),
        (
            lambda f: [p.unlink() for p in f.iterdir()],
            r"1 of its characters are missing, among them 'Alpha/character01'",
        ),
        (lambda f: (f / "0000_07.png").write_bytes(b"\x89PNG"), r"0000_07\.png is no readable image"),
        (
            lambda f: (f / "0000_07.png").write_bytes((f / "0000_07.png").read_bytes()[:-30]),
            r"0000_07\.png is no readable image",
        ),
    ],
    ids=["image missing", "class missing", "no image", "truncated image"],
)
def test_damaged_data_are_refused_by_name(root, damage, message):
    damage(root / "images_background/Alpha/character01")
    with pytest.raises(ValueError, match=message):
        small(root).setup("fit")
    assert not list(root.glob("*.npy*")) + list(root.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "lake"}, "split='lake' is unknown; use 'vinyals' or 'random1200'"),
        ({"shots": 6}, r"6 \+ 15 = 21, but an Omniglot character has 20 drawings; choose shots \+ queries <= 20"),
        ({"ways": 173}, "ways=173, but the val split has 172 classes; choose ways <= 172"),
        ({"ways": 101, "split": "random1200"}, "ways=101, but the val split has 100 classes"),
        ({"ways": 0}, "ways=0 must be"),
        ({"queries": 0}, "queries=0 must be"),
        ({"image_size": 0}, "image_size=0 must be"),
        ({"split_seed": -1}, "split_seed=-1 must be"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        OmniglotDataModule("unused", **arguments)


def test_the_shipped_split_has_the_published_sizes():
    split = omniglot.vinyals_split()
    assert {name: len(names) for name, names in split.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len({name for names in split.values() for name in names}) == 1623
    assert {name: len(names) for name, names in omniglot.random_split(0).items()} == omniglot._RANDOM_SIZES


def real_root():
    default = Path(__file__).parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("LIGHTNING_GP_DATA", default)) / "omniglot"
    if not root.is_dir():
        pytest.skip(f"no Omniglot in {root}; set LIGHTNING_GP_DATA to the folder that has it")
    return root


@pytest.mark.data
def test_the_real_archives_hold_every_class_of_the_split():
    tree = omniglot.scan(real_root())
    assert len(tree) == 1623
    assert set(tree) == {name for names in omniglot.vinyals_split().values() for name in names}
    assert {len(images) for images in tree.values()} == {20}


@pytest.mark.data
def test_episodes_of_the_real_data(tmp_path):
    data = OmniglotDataModule(real_root(), cache_dir=os.environ.get("LIGHTNING_GP_CACHE", tmp_path))
    data.prepare_data()
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.query[0].shape == (32, 75, 1, 28, 28)
    assert 0.05 < float(batch.query[0].mean()) < 0.12  # share of ink
    assert len(data.load_split("train").counts) == 4112
