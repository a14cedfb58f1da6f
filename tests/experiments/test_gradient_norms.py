"""Both figures of the gradient norm, end to end on tiny data."""

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.commands import reproduce
from lightning_gp.datamodules import ColoredMNISTDataModule
from lightning_gp.datamodules.named import colored_mnist
from lightning_gp.experiments import gradient_norms
from lightning_gp.experiments.gradient_norms import omniglot
from lightning_gp.experiments.penalty_signs import Curves, Signs, signs
from lightning_gp.networks import ColoredMNISTMLP

TINY = Signs(iterations=4, every=2, ways=2, environments=2, channels=4, examples=20)
SMALL = Curves(iterations=4, every=2, ways=2, environments=2, channels=4)
POINTS = {"inner_rates": (0.0, 0.01), "weights": (0.0, 1.0)}


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


def test_omniglot_from_the_command_line(characters, tmp_path, capsys):
    options = {"ways": 2, "channels": 4, "environments": 2, "iterations": 4, "every": 2, "seed": 3}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--root", str(characters), "--output", str(tmp_path / "out")]
    reproduce.main(["gradient-norms", "omniglot", *words])
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
    omniglot(str(characters), SMALL, output=tmp_path, inner_lr=0.0)
    maml, alpha_0 = np.split(np.array([list(row.values())[1:] for row in table(tmp_path / "omniglot.csv")], float), 2)
    np.testing.assert_array_equal(maml, alpha_0)


def test_signs(digits, characters, tmp_path):
    summary = signs(str(digits), str(characters), TINY, (0, 1), **POINTS, output=tmp_path / "out")
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
    settings = TINY
    summary = signs(str(digits), str(characters), settings, (0,), **POINTS, output=tmp_path)
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


def test_signs_from_the_command_line(tmp_path, monkeypatch):
    seen = []

    def record(root: str, omniglot_root: str, settings: Signs, seeds: Sequence[int], output: Path) -> None:
        """Keeps the arguments."""
        seen.append((root, omniglot_root, settings, list(seeds), output))

    monkeypatch.setitem(gradient_norms.FIGURES, "signs", record)
    words = "signs --root mnist --omniglot-root omniglot --seeds 2 --examples 20 --output"
    reproduce.main(["gradient-norms", *words.split(), str(tmp_path)])
    assert seen == [("mnist", "omniglot", Signs(examples=20), [0, 1], tmp_path)]


def test_finished_curves_are_kept_and_those_of_other_settings_refused(characters, tmp_path, monkeypatch):
    first = omniglot(str(characters), SMALL, output=tmp_path / "out")
    monkeypatch.setattr(gradient_norms, "maml_curve", lambda *_: pytest.fail("a finished run was started again"))
    assert omniglot(str(characters), SMALL, output=tmp_path / "out") == first
    with pytest.raises(ValueError, match="iterations was 4, is 6"):
        omniglot(str(characters), replace(SMALL, iterations=6), output=tmp_path / "out")


def test_missing_omniglot_shows_before_the_first_curve(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        signs(str(digits), str(tmp_path), TINY, output=tmp_path / "out")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"every=50 .* iterations=10"):
        omniglot(str(tmp_path), Curves(iterations=10))
    with pytest.raises(ValueError, match="every=0"):
        signs(str(tmp_path), settings=replace(TINY, every=0))
    with pytest.raises(ValueError, match=r"seeds=\[\] must"):
        signs(str(tmp_path), settings=TINY, seeds=())
    with pytest.raises(FileNotFoundError, match="MNIST is missing"):
        signs(str(tmp_path), settings=TINY)
    with pytest.raises(FileNotFoundError, match="No Omniglot"):
        omniglot(str(tmp_path))
