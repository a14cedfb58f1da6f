"""Tables of a comparison of made-up results."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lightning_gp.comparison import Comparison, Result
from lightning_gp.comparison.outcome import read_result
from lightning_gp.runs.curves import common_curve, read_curves

CURVE = {"val/accuracy": {9: 0.2, 19: 0.5, 29: 0.6}}


def result(*episodes, batches="a", curves=CURVE):
    mean = sum(episodes) / len(episodes)
    return Result({"accuracy": mean, "loss": 1 - mean}, {"accuracy": list(episodes)}, batches, curves)


@pytest.fixture
def comparison():
    return Comparison(
        {
            "MAML": {0: result(0.5, 0.7), 1: result(0.6, 0.9, batches="b")},
            "50% & more": {0: result(0.4, 0.6), 1: result(0.5, 0.7, batches="b")},
            "other": {0: result(0.4, 0.6, batches="c"), 1: result(0.5, 0.8, batches="b")},
        }
    )


def test_rows(comparison):
    first, second, third = comparison.rows
    assert comparison.metric == "accuracy"
    assert first.minus is None
    assert first.estimate.value == pytest.approx((0.6 + 0.75) / 2)
    assert second.minus.value == pytest.approx(-0.125)
    # differences of -0.1 and -0.15: standard deviation 0.05/√2, t(0.975, 1) = 12.706
    assert second.minus.over_seeds == pytest.approx(12.7062047 * 0.05 / 2, rel=1e-6)
    assert (second.paired, third.paired) == (True, False)
    assert third.minus.over_seeds > second.minus.over_seeds


def test_text_and_markdown(comparison):
    lines = str(comparison).splitlines()
    assert lines[0].split("  ")[-1] == "minus MAML"
    assert "-12.5 ± 31.8 %" in lines[2]
    assert lines[3].endswith("*")
    assert "2 test episodes each" in str(comparison)
    table = comparison.table("markdown").splitlines()
    assert table[1] == "| --- | ---: | ---: | ---: |"
    assert table[3].startswith("| 50% & more | 55.0 ± 63.5 % |")


def test_latex_escapes_names(comparison):
    table = comparison.table("latex")
    assert r"50\% \& more & 55.0 $\pm$ 63.5\,\% & " in table
    assert r"$-$12.5 $\pm$ 31.8\,\%" in table
    assert all(line.count("&") - line.count(r"\&") == 3 for line in table.splitlines() if line.endswith(r"\\"))


def test_csv_has_all_numbers(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison.table("csv"))))
    for row, made in zip(rows, comparison.rows, strict=True):
        assert float(row["mean"]) == made.estimate.value
        assert float(row["mean_over_episodes"]) == made.estimate.over_episodes
        assert row["test_episodes"] == "2"
    assert (rows[0]["minus"], float(rows[1]["minus_over_seeds"])) == ("", comparison.rows[1].minus.over_seeds)
    assert (float(rows[0]["seed_0"]), float(rows[0]["seed_1"])) == (0.6, 0.75)


def test_one_seed_has_intervals_over_episodes():
    one = Comparison({name: {3: result(*values)} for name, values in {"a": (0.5, 0.7), "b": (0.5, 0.6)}.items()})
    assert one.rows[1].minus.half_width == pytest.approx(1.96 * 0.05)  # differences 0 and -0.1
    assert "of one seed" in str(one)
    assert "over episodes" not in one.table("markdown").splitlines()[0]


def test_metric_and_baseline(comparison):
    other = Comparison(comparison.results, "loss", "other")
    assert other.rows[0].minus.value == pytest.approx(-(0.675 - 0.575))
    with pytest.raises(ValueError, match="metric='f1' is not logged"):
        Comparison(comparison.results, "f1")
    with pytest.raises(ValueError, match="baseline='ANIL' is none of MAML"):
        Comparison(comparison.results, None, "ANIL")
    with pytest.raises(ValueError, match="the same seeds"):
        Comparison({"a": {0: result(0.1, 0.2)}, "b": {1: result(0.1, 0.2)}})


def test_a_run_that_diverged_is_shown_and_is_no_number_in_json(comparison, tmp_path):
    broken = {**comparison.results, "other": {0: result(0.4, 0.6), 1: result(float("nan"), 0.5)}}
    made = Comparison(broken)
    assert "nan" in str(made)
    made.write(tmp_path)
    rows = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert rows[2]["over_seeds"] is None


def test_files_and_picture(comparison, tmp_path):
    files = comparison.write(tmp_path)
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    curves, test = comparison.plot().axes
    (band, *_) = curves.collections
    assert len(curves.lines) == len(curves.collections) == 3
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(20)  # both seeds are the same: no width
    assert [tick.get_text() for tick in test.get_yticklabels()] == ["MAML", "50% & more", "other"]


def test_a_band_is_the_interval_over_seeds():
    curves = [{"val/accuracy": {9: low, 19: 0.5}} for low in (0.2, 0.3)]
    made = Comparison({"a": {seed: result(0.5, 0.7, curves=curves[seed]) for seed in (0, 1)}})
    band = made.plot().axes[0].collections[0].get_paths()[0].vertices
    low, high = (find(band[band[:, 0] == 9][:, 1]) for find in (min, max))
    assert (low, high) == pytest.approx((25 - 12.7062047 * 5, 25 + 12.7062047 * 5), rel=1e-6)


def test_results_are_read_as_they_were_written(tmp_path):
    assert read_result(tmp_path) is None
    made = result(1 / 3, 0.1)
    made.write(tmp_path)
    found = read_result(tmp_path)
    assert (found.values, found.episodes, found.batches) == (made.values, made.episodes, made.batches)


def test_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,a,b\n0,4,1.5,\n0,4,,2\n1,9,2.5,nan\n1,,7,7\n,9,word,True\n")
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves["a"] == {4: 1.5, 9: 2.5}
    assert (curves["b"][4], curves["b"][9]) == (2.0, 1.0)
    assert common_curve([{0: 1.0, 1: float("nan")}, {0: 2.0, 1: 1.0}]) == ([0], [[1.0, 2.0]])


def test_a_test_set_that_all_seeds_share_is_told(comparison):
    shared = {"a": {seed: result(0.5, 0.7 + seed) for seed in (0, 1)}}
    assert "tested on the same examples" in str(Comparison(shared))
    assert "tested on the same examples" not in str(comparison)


def test_without_episodes_there_is_no_column_of_them():
    runs = {
        name: {seed: Result({"loss": 1.0 + seed + shift}) for seed in (0, 1)} for name, shift in (("a", 0), ("b", 1))
    }
    made = Comparison(runs)
    assert "over episodes" not in str(made).splitlines()[0]
    assert not made.rows[1].paired  # it is not known on what they were tested
    one = Comparison({name: {0: seeds[0]} for name, seeds in runs.items()})
    assert (one.rows[1].minus.half_width, "±" in str(one).splitlines()[2]) == (None, False)
