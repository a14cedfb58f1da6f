"""Both figures of the gradient norm, end to end on tiny data."""

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.datamodules import ColoredMNISTDataModule, colored_mnist, omniglot
from lightning_gp.experiments import gradient_norms
from lightning_gp.experiments.gradient_norms import main
from lightning_gp.experiments.penalty_signs import Signs, signs
from lightning_gp.networks import ColoredMNISTMLP

NAMES = {
    "train": ["Alpha/character01", "Alpha/character02", "Beta/character01"],
    "val": ["Beta/character02", "Beta/character03"],
    "test": ["Gamma/character01", "Gamma/character02"],
}
TINY = Signs(
    iterations=4,
    every=2,
    seeds=2,
    inner_rates=(0.0, 0.01),
    weights=(0.0, 1.0),
    ways=2,
    environments=2,
    channels=4,
    examples=20,
)


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


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """As many random images as ``examples`` needs, in MNIST's format."""
    count = 60
    monkeypatch.setattr(colored_mnist, "TRAINING_IMAGES", 50)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape, high in (("images-idx3", (count, 28, 28), 256), ("labels-idx1", (count,), 10)):
        content = bytes(4 + 4 * len(shape)) + rng.integers(0, high, shape, dtype=np.uint8).tobytes()
        (raw / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    read = colored_mnist._read_idx
    monkeypatch.setattr(colored_mnist, "_read_idx", lambda path, name, shape: read(path, name, (count, *shape[1:])))
    return tmp_path


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 300


def test_omniglot_from_the_command_line(characters, tmp_path, monkeypatch, capsys):
    small = {"ways": 2, "channels": 4, "environments": 2}
    run = gradient_norms.omniglot
    monkeypatch.setattr(gradient_norms, "omniglot", lambda **options: run(**options, **small))
    words = [
        "omniglot",
        "--root",
        characters,
        "--iterations",
        4,
        "--every",
        2,
        "--seed",
        3,
        "--output",
        tmp_path / "out",
    ]
    main([str(word) for word in words])
    assert "iteration 4/4" in capsys.readouterr().out
    rows = table(tmp_path / "out" / "omniglot.csv")
    assert [(row["run"], row["iteration"]) for row in rows] == [
        ("maml", "2"), ("maml", "4"), ("alpha_0", "2"), ("alpha_0", "4"),
    ]  # fmt: skip
    norms = [float(row["gradients/norm"]) for row in rows]
    assert min(norms) > 0
    assert norms[0] != norms[2]
    cosines = [float(row["gradients/cosine"]) for row in rows]
    assert max(map(abs, cosines)) <= 1
    text = (tmp_path / "out" / "omniglot.json").read_text()
    summary = json.loads(text)
    assert summary["norm_ratio_later_half"] == pytest.approx(norms[1] / norms[3])
    assert summary["share_of_positive_cosines"] == pytest.approx(sum(cosine > 0 for cosine in cosines[:2]) / 2)
    assert summary["command"].endswith("omniglot --root <omniglot> --iterations 4 --every 2 --seed 3")
    assert str(tmp_path) not in text
    assert is_picture(tmp_path / "out" / "omniglot.png")


def test_both_runs_see_the_same_network_and_episodes(characters, tmp_path):
    small = {"ways": 2, "channels": 4, "environments": 2, "iterations": 4, "every": 2}
    gradient_norms.omniglot(str(characters), output=tmp_path, inner_lr=0.0, **small)
    maml, alpha_0 = np.split(np.array([list(row.values())[1:] for row in table(tmp_path / "omniglot.csv")], float), 2)
    np.testing.assert_array_equal(maml, alpha_0)


def test_signs(digits, characters, tmp_path):
    summary = signs(str(digits), TINY, tmp_path / "out", str(characters))
    rows = table(tmp_path / "out" / "signs.csv")
    assert len(rows) == 3 * 2 * 2 * 2  # algorithms, coefficients, seeds, measurements
    last = [
        float(row["gradients/norm"])
        for row in rows
        if (row["algorithm"], row["coefficient"], row["iteration"]) == ("irmv1", "1.0", "4")
    ]
    assert summary["norm_by_coefficient_and_seed"]["irmv1"]["1"] == last
    assert summary["mean_norm_by_coefficient"]["irmv1"]["1"] == pytest.approx(sum(last) / 2)
    without = [summary["norm_by_coefficient_and_seed"][name]["0"] for name in ("irmv1", "gradient_penalty")]
    np.testing.assert_allclose(*without, rtol=1e-4)  # both are ERM
    assert json.loads((tmp_path / "out" / "signs.json").read_text()) == json.loads(json.dumps(summary))
    assert is_picture(tmp_path / "out" / "signs.png")


def test_the_norm_is_that_of_each_environment_after_the_last_step(digits, characters, tmp_path):
    settings = replace(TINY, seeds=1)
    summary = signs(str(digits), settings, tmp_path, str(characters))
    pl.seed_everything(0, verbose=False)
    network = ColoredMNISTMLP(settings.hidden)
    pairs = list(ColoredMNISTDataModule(str(digits), examples=settings.examples).environments("train").values())
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(settings.iterations):
        optimizer.zero_grad()
        sum(F.binary_cross_entropy_with_logits(network(x), y) for x, y in pairs).div(2).backward()
        optimizer.step()
    norms = []
    for x, y in pairs:
        gradients = torch.autograd.grad(F.binary_cross_entropy_with_logits(network(x), y), list(network.parameters()))
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    assert summary["mean_norm_by_coefficient"]["irmv1"]["0"] == pytest.approx(sum(norms) / 2, rel=1e-4)


def test_signs_from_the_command_line(digits, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(gradient_norms, "signs", lambda *arguments: seen.append(arguments))
    main(
        [
            "signs",
            "--root",
            "mnist",
            "--omniglot-root",
            "omniglot",
            "--seeds",
            "2",
            "--examples",
            "20",
            "--output",
            str(tmp_path),
        ]
    )
    assert seen == [("mnist", Signs(seeds=2, examples=20), tmp_path, "omniglot")]


def test_missing_omniglot_shows_before_the_first_curve(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        signs(str(digits), TINY, tmp_path / "out", str(tmp_path))


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"every=50 .* iterations=10"):
        gradient_norms.omniglot(str(tmp_path), iterations=10)
    with pytest.raises(ValueError, match="every=0"):
        signs(str(tmp_path), replace(TINY, every=0))
    with pytest.raises(ValueError, match="seeds=0"):
        signs(str(tmp_path), replace(TINY, seeds=0))
    with pytest.raises(FileNotFoundError, match="MNIST is missing"):
        signs(str(tmp_path), TINY)
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        gradient_norms.omniglot(str(tmp_path))
