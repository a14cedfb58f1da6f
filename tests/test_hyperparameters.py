"""What is saved as hyperparameters is plain: every checkpoint can be read with ``weights_only=True``."""

from collections.abc import Mapping, MutableSequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_gp import ERM, MAML
from lightning_gp._lightning import Trainer
from lightning_gp.datamodules import (
    ClassFolderDataModule,
    ExampleEnvironments,
    FewShotDataModule,
    LinearRegressionDataModule,
    SinusoidDataModule,
)
from lightning_gp.hyperparameters import plain


class Config(Mapping):
    """Behaves as OmegaConf's DictConfig does."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, key):
        return self.content[key]

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


class Items(MutableSequence):
    """Behaves as OmegaConf's ListConfig does."""

    def __init__(self, *content):
        self.content = list(content)

    def __getitem__(self, i):
        return self.content[i]

    def __setitem__(self, i, value):
        self.content[i] = value

    def __delitem__(self, i):
        del self.content[i]

    def __len__(self):
        return len(self.content)

    def insert(self, i, value):
        self.content.insert(i, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array([Path("a")]), ["a"]),
        (Path("a") / "b", "a/b"),
        (Config({"a": Items(1, Path("x"))}), {"a": [1, "x"]}),
        ((np.int8(1), [Path("y")]), (1, ["y"])),
        (range(2), [0, 1]),
        ({"a": None, "b": "text", "c": 1.5}, {"a": None, "b": "text", "c": 1.5}),
    ],
)
def test_values_become_plain(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


def tree(root):
    for split in ("train", "val", "test"):
        for c in range(3):
            folder = root / split / f"{split}{c}"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(np.full((4, 4, 3), 20 * c + i, np.uint8)).save(folder / f"{i}.png")
    return root


SMALL = {"environments_per_batch": np.int64(2), "iterations_per_epoch": 2, "val_episodes": 2}
SHOT = {"ways": np.int64(2), "shots": 1, "queries": 1, **SMALL}
X, Y = torch.rand(40, 48), torch.arange(40) % 10
DATA = {
    "sinusoid": (lambda p: SinusoidDataModule(shots=np.int32(2), amplitude=Items(0.1, np.float64(5.0)), **SMALL), 1),
    "linear": (lambda p: LinearRegressionDataModule(noise=np.float32(0.5), **SMALL), 1),
    "class folder": (lambda p: ClassFolderDataModule(tree(p), image_size=4, cache_dir=p / "cache", **SHOT), 48),
    "dataset": (
        lambda p: FewShotDataModule.from_dataset(
            torch.utils.data.TensorDataset(X.view(40, 3, 4, 4), Y),
            cache_dir=p,
            fractions=np.array([0.4, 0.3, 0.3]),
            **SHOT,
        ),
        48,
    ),
    "tensors": (lambda p: FewShotDataModule.from_tensors(X, Y, fractions=Items(0.4, 0.3, 0.3), **SHOT), 48),
    "named": (
        lambda p: ExampleEnvironments(
            {"a": (X, Y % 2), "b": (X, Y % 2)}, batch_size=np.int64(8), val_fraction=np.float64(0.5)
        ),
        48,
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_checkpoints_of_every_data_module_are_read_with_weights_only(name, tmp_path):
    make, width = DATA[name]
    data = make(tmp_path)
    network = nn.Sequential(nn.Flatten(), nn.Linear(width, 1 if width == 1 else 2))
    criterion = {"criterion": nn.functional.mse_loss} if width == 1 else {}
    module = ERM(network) if name == "named" else MAML(network, **criterion)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved
    assert not {"x", "y", "dataset", "train"} & set(saved)
