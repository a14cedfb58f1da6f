import gzip

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_gp.datamodules.named.colored_mnist import ColoredMNISTDataModule, colored
from lightning_gp.modules.irm import IRMv1
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """Files in MNIST's format with random digits; every image carries its own index in its top left pixels."""
    root = tmp_path_factory.mktemp("mnist")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(1, 255, (60_000, 1, 1), dtype=np.uint8), 28 * 28, axis=0).reshape(-1)
    images = images[: 60_000 * 784].reshape(60_000, 28, 28).copy()
    images[:, 0, 0], images[:, 0, 2] = np.divmod(np.arange(60_000), 256)
    images[:, 0, 4] = 255
    digits = rng.integers(0, 10, 60_000, dtype=np.uint8)
    header = np.array([0x803, 60_000, 28, 28], dtype=">u4").tobytes()
    (raw / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = np.array([0x801, 60_000], dtype=">u4").tobytes()
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + digits.tobytes(), 1))
    return str(root), digits


def indices(x):
    pixels = (x.sum(1) * 255).round().long()
    return pixels[:, 0, 0] * 256 + pixels[:, 0, 1]


def colours(x):
    return (x[:, 1, 0, 2] > 0).float()


def test_construction(mnist):
    root, digits = mnist
    data = ColoredMNISTDataModule(root, train_agreement=(0.9, 0.8), test_agreement=0.1, label_noise=0.25)
    train, test = data.environments("train"), data.environments("test")
    assert list(train) == ["agree_0.9", "agree_0.8"]
    assert list(test) == ["agree_0.1"]
    used = torch.cat([indices(x) for x, _ in train.values()])
    assert sorted(used.tolist()) == list(range(50_000))
    assert indices(test["agree_0.1"][0]).tolist() == list(range(50_000, 60_000))
    for (x, y), agreement in zip([*train.values(), *test.values()], (0.9, 0.8, 0.1), strict=True):
        assert x.shape[1:] == (2, 14, 14)
        assert y.shape == (len(x), 1)
        assert x.min() == 0
        assert x.max() <= 1
        assert ((x[:, 0] > 0) & (x[:, 1] > 0)).sum() == 0
        tolerance = 4 * (0.25 / len(x)) ** 0.5
        assert abs((colours(x) == y[:, 0]).float().mean() - agreement) < tolerance
        clean = torch.from_numpy(digits)[indices(x)] < 5
        assert abs((clean.float() == y[:, 0]).float().mean() - 0.75) < tolerance


def test_subsampling_keeps_every_second_pixel():
    images = torch.arange(28 * 28).reshape(1, 28, 28).remainder(256).to(torch.uint8)
    x, y = colored(images, torch.tensor([3]), 1.0, 0.0, torch.Generator().manual_seed(0))
    assert y.tolist() == [[1.0]]
    torch.testing.assert_close(x[0, 1] * 255, images[0, ::2, ::2].float())
    assert x[0, 0].abs().sum() == 0


def test_seeds(mnist):
    def first(seed):
        return ColoredMNISTDataModule(mnist[0], seed=seed).environments("train")["agree_0.9"]

    assert torch.equal(first(0)[0], first(0)[0])
    assert not torch.equal(first(0)[1], first(1)[1])


def test_grayscale_has_the_same_labels_and_no_colour(mnist):
    colour = ColoredMNISTDataModule(mnist[0]).environments("train")["agree_0.8"]
    gray = ColoredMNISTDataModule(mnist[0], grayscale=True).environments("train")["agree_0.8"]
    assert torch.equal(gray[1], colour[1])
    assert torch.equal(gray[0], colour[0].sum(1, keepdim=True))


def test_three_environments_of_unequal_size(mnist):
    data = ColoredMNISTDataModule(mnist[0], train_agreement=(0.9, 0.8, 0.9))
    assert data.environment_names["train"] == ("agree_0.9", "agree_0.8", "agree_0.9_2")
    batch = next(iter(data.train_dataloader()))
    assert [item.support[0].shape[1] for item in batch] == [16_667, 16_667, 16_666]


def test_fit_and_test(mnist, tmp_path):
    data = ColoredMNISTDataModule(mnist[0], examples=50, val_fraction=0.2, steps_per_epoch=3)
    module = IRMv1(ColoredMNISTMLP(8), penalty_weight=10.0, criterion=nn.BCEWithLogitsLoss())
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert {"val/accuracy/agree_0.9", "val/accuracy/agree_0.8", "val/objective"} <= set(trainer.callback_metrics)
    assert not any("0.1" in name for name in trainer.callback_metrics)
    assert trainer.global_step == 3
    assert "test/accuracy/agree_0.1" in trainer.test(module, data, verbose=False)[0]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"train_agreement\[1\]=1\.2 must be .* at most 1"):
        ColoredMNISTDataModule("data", train_agreement=(0.9, 1.2))
    with pytest.raises(ValueError, match=r"label_noise=-0\.1"):
        ColoredMNISTDataModule("data", label_noise=-0.1)
    with pytest.raises(ValueError, match="at least two"):
        ColoredMNISTDataModule("data", train_agreement=(0.9,))
    with pytest.raises(ValueError, match="examples=0"):
        ColoredMNISTDataModule("data", examples=0)
    with pytest.raises(FileNotFoundError, match="download=True"):
        ColoredMNISTDataModule(str(tmp_path)).setup()
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="7 bytes"):
        ColoredMNISTDataModule(str(tmp_path)).setup()
