"""CUB-200-2011, all 200 classes of it, with two small images each."""

import hashlib
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from lightning_gp.datamodules import CUBDataModule
from lightning_gp.datamodules.images import cub
from tests.datamodules.benchmark_cases import small

NAMES = cub.shipped_list("cub")["names"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(CUBDataModule, "total_images", 400)
    monkeypatch.delenv("LIGHTNING_GP_CACHE", raising=False)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("cub")
    for label, name in enumerate(NAMES):
        folder = root / "CUB_200_2011" / "images" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (label, number, 7)).save(folder / f"{name[4:]}_{number:04d}.png")
    return root


def as_unpacked(pristine, root):
    shutil.copytree(pristine, root)


def images_folder(pristine, root):
    shutil.copytree(pristine / "CUB_200_2011", root)


def bare(pristine, root):
    shutil.copytree(pristine / "CUB_200_2011" / "images", root)


def archive(pristine, root):
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz", compresslevel=1) as tar:
        tar.add(pristine / "CUB_200_2011", "CUB_200_2011")
        tar.add(__file__, "attributes.txt")


def labels(data):
    """split → class name → (label, number) of the pixels."""
    data.prepare_data()
    found = {}
    for split in ("train", "val", "test"):
        part = data.load_split(split)
        rows = part.first_rows()[:, None] + np.arange(2)
        found[split] = dict(zip(part.names, part.images[rows][:, :, 0, 0, :2].tolist(), strict=True))
    return found


@pytest.mark.parametrize("form", [as_unpacked, images_folder, bare, archive])
def test_every_form_gives_the_same_classes_and_images(tmp_path, pristine, form):
    form(pristine, tmp_path / "data")
    found = labels(small(CUBDataModule, tmp_path / "data"))
    for split, remainders in (("train", {0, 2}), ("val", {1}), ("test", {3})):  # the rule of Chen et al.
        places = [i for i in range(200) if i % 4 in remainders]
        assert found[split] == {NAMES[i]: [[i, 0], [i, 1]] for i in places}
    labels(small(CUBDataModule, tmp_path / "data"))  # again, from what is there now


@pytest.mark.parametrize(
    ("split", "sizes"), [("chen2019", (100, 50, 50)), ("easyfsl", (140, 30, 30)), ("dn4", (130, 20, 50))]
)
def test_splits_have_the_published_sizes_and_share_no_class(split, sizes):
    classes = CUBDataModule("unused", split=split).classes
    assert tuple(len(classes[part]) for part in ("train", "val", "test")) == sizes
    assert sorted(name for names in classes.values() for name in names) == NAMES


@pytest.fixture
def server(tmp_path):
    """Serves ``tmp_path/remote`` on this machine."""
    (tmp_path / "remote").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "remote"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as opened:
        threading.Thread(target=opened.serve_forever).start()
        yield f"http://127.0.0.1:{opened.server_port}"
        opened.shutdown()


def test_download_is_checked(tmp_path, pristine, server, monkeypatch):
    archive(pristine, tmp_path / "remote")
    md5 = hashlib.md5((tmp_path / "remote/CUB_200_2011.tgz").read_bytes()).hexdigest()
    root = tmp_path / "data"
    for name, checksum in (("CUB_200_2011.tgz", "0" * 32), ("absent.tgz", md5)):
        monkeypatch.setattr(CUBDataModule, "remote", lambda self, a=(f"{server}/{name}", checksum): a)
        with pytest.raises(OSError, match=rf"Cannot fetch {server}/{name} to .*CUB_200_2011\.tgz"):
            small(CUBDataModule, root, download=True).prepare_data()
        assert not list(root.iterdir())
    monkeypatch.setattr(CUBDataModule, "remote", lambda self: (f"{server}/CUB_200_2011.tgz", md5))
    assert len(labels(small(CUBDataModule, root, download=True))["train"]) == 100


def test_the_address():
    address, md5 = CUBDataModule("unused").remote()
    assert address.startswith("https://data.caltech.edu/")
    assert md5 == "97eceeb196236b17998738112f37df78"


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No CUB-200-2011 in .*Use download=True, or get CUB_200_2011\.tgz from"
    ):
        small(CUBDataModule, tmp_path).prepare_data()


def test_a_truncated_archive_leaves_nothing(tmp_path, pristine):
    archive(pristine, tmp_path)
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"CUB_200_2011\.tgz is truncated or damaged"):
        small(CUBDataModule, tmp_path).prepare_data()
    assert [p.name for p in tmp_path.iterdir()] == ["CUB_200_2011.tgz"]


def test_incomplete_trees_are_named(tmp_path, pristine):
    as_unpacked(pristine, tmp_path / "data")
    folder = tmp_path / "data/CUB_200_2011/images/003.Sooty_Albatross"
    next(folder.iterdir()).unlink()
    with pytest.raises(
        ValueError, match=r"it has 399 images in 200 classes, there should be 400 .*'003.Sooty_Albatross'"
    ):
        small(CUBDataModule, tmp_path / "data").prepare_data()
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"1 of its 200 classes have no images, among them '003.Sooty_Albatross'"):
        small(CUBDataModule, tmp_path / "data").prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "lake"}, "split='lake' is unknown; use one of 'chen2019', 'easyfsl', 'dn4'"),
        ({"ways": 51}, "ways=51, but the val split of CUB-200-2011 has 50 classes"),
        ({"ways": 21, "split": "dn4"}, "has 20 classes"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        CUBDataModule("unused", **arguments)
