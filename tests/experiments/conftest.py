from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from lightning_gp.datamodules.images import omniglot

NAMES = {
    "train": ["Alpha/character01", "Alpha/character02", "Beta/character01"],
    "val": ["Beta/character02", "Beta/character03"],
    "test": ["Gamma/character01", "Gamma/character02"],
}


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """Bars of different sizes in Omniglot's folders."""
    monkeypatch.setattr(omniglot, "vinyals_split", lambda: NAMES)
    monkeypatch.setenv("LIGHTNING_GP_CACHE", str(tmp_path / "cache"))
    for i, name in enumerate(sorted(name for names in NAMES.values() for name in names)):
        part = "images_evaluation" if name.startswith("Gamma") else "images_background"
        folder = tmp_path / "data" / part / name
        folder.mkdir(parents=True)
        for j in range(20):
            image = Image.new("1", (28, 28), 1)
            ImageDraw.Draw(image).rectangle((2, 2, 4 + 3 * i, 6 + j), fill=0)
            image.save(folder / f"{i:04d}_{j + 1:02d}.png")
    return tmp_path / "data"
