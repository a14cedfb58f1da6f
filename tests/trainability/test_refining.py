"""Borders by bisection, against a border that is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp import MAML, Environments
from lightning_gp.trainability import Outcome, TrainabilityMap, TrainabilityResult, merge
from lightning_gp.trainability.refining import between, bracket
from lightning_gp.trainability.storage import Cell, cells_of
from tests.trainability import problems

LAMBDA = 2 * 1.25
"""Of the mean of (w x)² over x = ± 1, ± √1.5."""


def parabola(seed=0):
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, 1.0 + seed)
    return MAML(network, criterion=F.mse_loss)


def trainability(outer_lrs=(0.1, 10.0), **options):
    x = torch.tensor([1.0, -1.0, math.sqrt(1.5), -math.sqrt(1.5)], dtype=torch.float64).reshape(1, 4, 1)
    data = Environments((x, 0 * x), (x, 0 * x))
    return TrainabilityMap(
        parabola, data, **{"inner_lrs": [0.01, 0.1], "iterations": 30, **options}, outer_lrs=outer_lrs
    )


def theory(alpha):
    return 2 / (LAMBDA * (1 - alpha * LAMBDA) ** 2)


def test_refined_borders_are_the_bound_and_cost_the_logarithm(tmp_path):
    result = trainability(iterations=100).run(tmp_path / "map.jsonl", progress=False, refine=0.005)
    steps = math.ceil(math.log2(math.log(100) / math.log(1.005)))
    assert len(result.cells) == 3 * (2 + steps)  # a grid so fine has 924 cells for each α
    assert result.complete
    assert result.refined
    for alpha, found in zip((0.01, 0.1), result.critical_outer_lrs(), strict=True):
        # |1 − βc|^(2·100) = 10⁴ is where a cell ends, and the bracket is within 0.5 %
        assert found == pytest.approx(theory(alpha) * (1 + 10 ** (4 / 200)) / 2, rel=0.0025)
    assert result.zero_critical_outer_lr() == pytest.approx(theory(0) * (1 + 10 ** (4 / 200)) / 2, rel=0.0025)
    assert result.losses.shape == (2, 2)
    assert not trainability().run(progress=False).refined


def test_an_interrupted_bisection_goes_on_and_can_be_made_finer(tmp_path):
    path, half = tmp_path / "map.jsonl", tmp_path / "half.jsonl"
    short = {"seeds": (0, 1), "inner_lrs": [0.1], "iterations": 15}
    trainability(**short).run(path, progress=False, refine=0.05)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    half.write_bytes(b"".join(lines[:-9]) + lines[-9][:20])
    trainability(**short).run(half, progress=False, refine=0.05)
    assert half.read_bytes() == content
    trainability(**short).run(half, progress=False, refine=0.2)
    assert half.read_bytes() == content
    finer = trainability(**short).run(half, progress=False, refine=0.01)
    assert len(finer.cells) > len(lines) - 1
    assert set(TrainabilityResult.load(path).cells) < set(finer.cells)


def test_shards_are_refined_when_they_are_merged(tmp_path):
    files = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for index, path in enumerate(files, 1):
        with pytest.raises(ValueError, match="run the shards without refine, merge"):
            trainability().run(path, shard=(index, 2), progress=False, refine=0.1)
        trainability(iterations=8).run(path, shard=(index, 2), progress=False)
    merge(files, tmp_path / "merged.jsonl")
    trainability(iterations=8).run(tmp_path / "merged.jsonl", progress=False, refine=0.1)
    trainability(iterations=8).run(tmp_path / "whole.jsonl", progress=False, refine=0.1)
    assert (tmp_path / "merged.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_processes_bisect_to_the_same_file(tmp_path):
    for workers in (1, 2):
        problems.tiny_map().run(tmp_path / f"{workers}.jsonl", workers, progress=False, refine=0.5)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


@pytest.mark.parametrize(("refine", "error"), [(0.0, ValueError), (-1.0, ValueError), (math.nan, ValueError)])
def test_widths_that_never_end_are_refused(refine, error):
    with pytest.raises(error, match="refine="):
        trainability().run(progress=False, refine=refine)


GOOD, RISEN, GONE = Outcome(1.0, 2.0, 5), Outcome(3.0, 2.0, 5), Outcome(None, 2.0, 1)
HEADER = {"seeds": [0], "inner_lrs": [1.0], "outer_lrs": [1.0, 4.0, 16.0], "zero_inner_lr": False}


@pytest.mark.parametrize(
    ("outcomes", "criterion", "expected"),
    [
        ((GOOD, GOOD, GOOD), "diverged", (16.0, math.inf, math.inf)),
        ((GONE, GOOD, GOOD), "diverged", (0.0, 1.0, 0.0)),
        ((GOOD, GONE, GOOD), "diverged", (1.0, 4.0, 2.0)),  # the first failure counts
        ((GOOD, RISEN, GONE), "diverged", (4.0, 16.0, 8.0)),
        ((GOOD, RISEN, GONE), "worse", (1.0, 4.0, 2.0)),
    ],
)
def test_brackets(outcomes, criterion, expected):
    cells = dict(zip(cells_of(HEADER), outcomes, strict=True))
    found = bracket(cells, HEADER, 0, 1.0, criterion)
    assert (found.low, found.high, found.border) == expected
    wanted = [Cell(0, 1.0, expected[2])] if 0 < expected[2] < math.inf else []
    assert between(HEADER, cells, 0.1, criterion) == wanted
    assert between(HEADER, cells, 4.0, criterion) == []
    for cell in wanted:
        assert bracket({**cells, cell: GONE}, HEADER, 0, 1.0, criterion)[:2] == (expected[0], expected[2])
        assert bracket({**cells, cell: GOOD}, HEADER, 0, 1.0, criterion)[:2] == (expected[2], expected[1])


def test_borders_of_seeds_and_what_is_not_finished():
    header = {**HEADER, "seeds": [0, 1]}
    cells = dict.fromkeys(cells_of(header), GOOD)
    cells[Cell(0, 1.0, 16.0)] = GONE
    cells[Cell(1, 1.0, 4.0)] = GONE
    result = TrainabilityResult({**header, "settings": {}}, cells)
    assert result.seed_borders(1.0).tolist() == [8.0, 2.0]
    assert result.critical_outer_lrs().tolist() == [2.0]
    assert result.of_seed(0).critical_outer_lrs().tolist() == [8.0]
    with pytest.raises(ValueError, match="seed=3 is none of"):
        result.of_seed(3)
    del cells[Cell(1, 1.0, 1.0)]
    assert np.isnan(TrainabilityResult({**header, "settings": {}}, cells).seed_borders(1.0)).tolist() == [False, True]
