"""Files of maps: interrupted, spread, merged, refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.environments import Environments
from lightning_gp.modules import FOMAML, MAML, GradientPenalty, IRMv1
from lightning_gp.plots import save_figure
from lightning_gp.trainability import TrainabilityMap, TrainabilityResult, merge, plot_map
from tests.trainability import problems

ROOT = problems.__file__.rsplit("/tests/", 1)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "map.jsonl"
    problems.tiny_map().run(path, progress=False)
    return path


def linear(**changes):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(1, 5, 1)
    settings = {"inner_lrs": [0.1], "outer_lrs": [0.1, 20.0], "iterations": 5}
    module = MAML(nn.Linear(1, 1).double(), criterion=F.mse_loss)
    return TrainabilityMap(module, Environments((x, x), (x, x)), **{**settings, **changes})


def test_result(whole):
    result = TrainabilityResult.load(whole)
    assert result.complete
    assert result.losses.shape == result.diverged.shape == (3, 3)
    assert result.diverged[:, 2].tolist() == [2, 2, 2]
    assert np.isnan(result.losses[:, 2]).all()
    assert np.isfinite(result.losses[:, :2]).all()
    assert (result.critical_outer_lrs() == np.sqrt(0.1 * 50.0)).all()
    assert result.zero_critical_outer_lr() == np.sqrt(0.1 * 50.0)
    outcomes = [problems.tiny_map(seeds=(seed,)).run(progress=False).losses[1, 0] for seed in (0, 1)]
    assert result.losses[1, 0] == np.mean(outcomes)
    assert outcomes[0] != outcomes[1]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_continued_is_bitwise_the_same(whole, tmp_path, workers):
    path = tmp_path / "map.jsonl"
    command = [sys.executable, "-m", "tests.trainability.problems", str(path), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = 0
    for wanted in (3, 9):
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        while lines < wanted and process.poll() is None:
            time.sleep(0.002)
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= len(TrainabilityResult.load(path).cells) <= 24
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.62, 0.97])
def test_file_cut_off_anywhere_continues_to_the_same_file(whole, tmp_path, share):
    path = tmp_path / "map.jsonl"
    content = whole.read_bytes()
    first = content.index(b"\n") + 1
    path.write_bytes(content[: first + int(share * (len(content) - first))])
    problems.tiny_map().run(path, progress=False)
    assert path.read_bytes() == content


def test_shards_merge_to_the_same_file(whole, tmp_path):
    files = [tmp_path / f"{index}.jsonl" for index in (1, 2, 3)]
    for index, path in enumerate(files, 1):
        result = problems.tiny_map().run(path, shard=(index, 3), progress=False)
        assert not result.complete
    with pytest.raises(ValueError, match="8 of 24 cells are missing"):
        merge(files[:2], tmp_path / "merged.jsonl")
    assert not (tmp_path / "merged.jsonl").exists()
    merge(files, tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match=r"shard is '1/3'"):
        problems.tiny_map().run(files[0], progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 21}, r"settings.iterations is 20, not 21"),
        ({"optimizer": "adam"}, r"settings.optimizer is 'sgd', not 'adam'"),
        ({"seeds": (0, 2)}, r"seeds is \[0, 1\], not \[0, 2\]"),
        ({"outer_lrs": [0.01, 0.2, 50.0]}, "outer_lrs"),
    ],
)
def test_file_of_other_settings_is_refused_and_kept(whole, changes, message):
    before = whole.read_bytes()
    with pytest.raises(ValueError, match=message):
        problems.tiny_map(**changes).run(whole, progress=False)
    assert whole.read_bytes() == before


def test_other_weights_are_other_settings(tmp_path):
    linear().run(tmp_path / "map.jsonl", progress=False)
    with pytest.raises(ValueError, match=r"starts\.0\.weights"):
        linear().run(tmp_path / "map.jsonl", progress=False)


@pytest.mark.parametrize("position", [0, 5])
def test_damaged_and_foreign_files_are_refused_and_kept(whole, tmp_path, position):
    lines = whole.read_bytes().split(b"\n")
    lines[position] = lines[position].replace(b"0", b"1", 1)
    path = tmp_path / "map.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"no file of a trainability map|damaged in line 6"):
        problems.tiny_map().run(path, progress=False)
    assert path.read_bytes() == b"\n".join(lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_lrs": []}, "inner_lrs is empty"),
        ({"outer_lrs": [0.2, 0.1]}, "outer_lrs must ascend, but 0.2 comes before 0.1"),
        ({"outer_lrs": [0.1, 0.1]}, "must ascend"),
        ({"inner_lrs": [0.0, 0.1]}, "inner_lrs contains 0"),
        ({"inner_lrs": [float("nan")]}, "contains nan"),
        ({"iterations": 0}, "iterations=0"),
        ({"seeds": (0, 1)}, "one seed"),
        ({"seeds": ()}, "seeds="),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        linear(**changes)


def test_objective_that_is_not_finite_is_refused_before_anything_is_written(tmp_path):
    x = torch.full((1, 5, 1), float("nan"))
    module = MAML(nn.Linear(1, 1), criterion=F.mse_loss)
    trainability = TrainabilityMap(module, Environments((x, x), (x, x)), [0.1], [0.1], iterations=5)
    with pytest.raises(ValueError, match="nan before the first step"):
        trainability.run(tmp_path / "map.jsonl", progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="shard=3/2"):
        linear().run(shard=(3, 2))


def test_file_holds_no_machine(whole):
    header = json.loads(whole.read_text().split("\n")[0])["record"]
    assert header["settings"]["objective"]["rate"] == "inner_lr"
    assert set(header["versions"]) == {"lightning_gp", "torch", "python"}
    assert "/" not in whole.read_text()


def test_pictures(whole, tmp_path):
    pytest.importorskip("matplotlib")
    result = TrainabilityResult.load(whole)
    result.worse = result.diverged
    figure = plot_map(result, [20.0, 2.0], ("simplified", "exact"), title="tiny")
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    image = axes.collections[0].get_array().reshape(3, 3)
    assert np.ma.getmaskarray(image)[2].all()  # the diverged β stays blank
    assert not np.ma.getmaskarray(image)[:2].any()
    labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
    assert labels == [
        "β_c found at α = 0, median and range",
        "β_c found, median and range",
        "β_c, λ_1 = 20, simplified",
        "β_c, λ_1 = 20, exact",
        "β_c, λ_2 = 2, simplified",
        "β_c, λ_2 = 2, exact",
        "α_c = 0.05",
    ]
    x, y = next(line for line in axes.lines if "λ_1 = 20, simplified" in line.get_label()).get_data()
    assert y[0] == pytest.approx(2 / (20 - x[0] * 400))
    files = save_figure(figure, tmp_path / "map.jsonl", ("png", "pdf"))
    assert [file.suffix for file in files] == [".png", ".pdf"]
    assert all(file.stat().st_size > 1000 for file in files)
    with pytest.raises(ValueError, match="'weird'"):
        plot_map(result, [1.0], curves=["weird"])


CURVES = {
    "MAML": (lambda n: MAML(n, criterion=F.mse_loss), ["λ_1 = 4, exact"], lambda a: 2 / (4 * (1 - 4 * a) ** 2)),
    "MAML, 3 steps": (
        lambda n: MAML(n, inner_steps=3, criterion=F.mse_loss),
        ["λ_1 = 4, exact, S = 3"],
        lambda a: 2 / (4 * (1 - 4 * a) ** 6),
    ),
    "FOMAML, 2 steps": (
        lambda n: FOMAML(n, inner_steps=2, criterion=F.mse_loss),
        ["λ_1 = 4, simplified, S = 2"],
        lambda a: 2 / (4 * (1 - 4 * a) ** 2),
    ),
    "positive penalty": (
        lambda n: GradientPenalty(n, sign=1, criterion=F.mse_loss),
        ["λ_1 = 4, positive penalty"],
        lambda a: 2 / (4 + 2 * a * 16),
    ),
    "negative penalty": (
        lambda n: GradientPenalty(n, sign=-1, criterion=F.mse_loss),
        ["λ_1 = 4, simplified"],
        lambda a: 2 / (4 - 2 * a * 16),
    ),
    "IRMv1": (lambda n: IRMv1(n, criterion=F.mse_loss), [], None),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_theory_is_that_of_the_maps_own_objective(name):
    pytest.importorskip("matplotlib")
    build, labels, bound = CURVES[name]
    x = torch.linspace(-1, 1, 5).reshape(1, 5, 1).repeat(2, 1, 1)
    batch = Environments((x, 2 * x), (x, 2 * x))
    result = TrainabilityMap(build(nn.Linear(1, 1)), batch, [0.01, 0.05], [0.1, 0.2], iterations=2).run(progress=False)
    lines = [line for line in plot_map(result, [4.0]).axes[0].lines if line.get_label().startswith("β_c, ")]
    assert [line.get_label().removeprefix("β_c, ") for line in lines] == labels
    for line in lines:
        alpha, beta = (values[~np.isnan(line.get_ydata())] for values in line.get_data())
        np.testing.assert_allclose(beta, bound(alpha))


def test_three_looks_and_a_caption(whole):
    pytest.importorskip("matplotlib")
    result = TrainabilityResult.load(whole)
    result.worse = result.diverged.copy()
    result.worse[0, 1] = 2  # as if both seeds had ended above their first losses
    axes = plot_map(result).axes[0]
    masks = [np.ma.getmaskarray(mesh.get_array()).reshape(3, 3).T for mesh in axes.collections[:3]]
    looks = [~mask for mask in masks]
    assert np.array_equal(sum(look.astype(int) for look in looks), np.ones((3, 3)))  # each cell has one look
    assert np.argwhere(looks[1]).tolist() == [[0, 1]]
    assert np.array_equal(looks[2], result.diverged > 0)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:3] == ["trained: colour of the loss", "loss rose above its first", "diverged"]
    assert "20 iterations, 2 seeds" in axes.get_xlabel()
    assert f"first loss {result.first_loss:.3g}" in axes.get_xlabel()


def test_borders_of_each_seed(whole):
    result = TrainabilityResult.load(whole)
    outcomes = dict(result.cells)
    cell = next(cell for cell in outcomes if cell.seed == 1 and cell.inner_lr == 0.01 and cell.outer_lr == 0.1)
    outcomes[cell] = outcomes[cell]._replace(loss=None)
    changed = TrainabilityResult(result.header, outcomes)
    np.testing.assert_allclose(changed.seed_borders(0.01), [np.sqrt(0.1 * 50), np.sqrt(0.01 * 0.1)])
    del outcomes[cell]
    assert np.isnan(TrainabilityResult(result.header, outcomes).seed_borders(0.01)).tolist() == [False, True]
