"""``reproduce lil-curves`` end to end on tiny data: runs, resuming, shards, aggregation."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from lightning_gp.commands import reproduce
from lightning_gp.experiments import lil_curves
from lightning_gp.experiments.lil_curves import Settings, planned
from lightning_gp.experiments.lil_curves_summary import PANELS, summarize

TINY = {
    "iterations": 4,
    "every": 2,
    "val-episodes": 4,
    "test-episodes": 4,
    "probe-environments": 2,
    "ways": 2,
    "environments": 2,
    "channels": 4,
    "inner-steps": 2,
}


def command(folder, *words, **changes):
    numbers = {**TINY, **changes}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    paths = ["--root", str(folder), "--output", str(folder.parent / "out")]
    paths += ["--cache-dir", str(folder.parent / "cache")]
    reproduce.main(["lil-curves", *paths, *options, *words])


def test_shards_make_all_runs_and_a_repeated_command_none(characters, monkeypatch, capsys):
    out = characters.parent / "out"
    command(characters, "--seeds", "0", "1", "--shard", "1/2")
    assert {path.name for path in (out / "runs").iterdir()} == {
        "maml-seed0.json", "anil-seed0.json", "boil-seed1.json", "lil-seed1.json",
    }  # fmt: skip
    assert "seed 0: iteration 4/4, val/accuracy" in capsys.readouterr().out
    command(characters, "--seeds", "0", "1", "--shard", "2/2")
    summary = json.loads((out / "lil_curves.json").read_text())
    assert [summary["algorithms"][name]["seeds"] for name in ("maml", "lil", "anil", "boil")] == [[0, 1]] * 4
    assert summary["lil_minus_maml_same_seed"]["seeds"] == [0, 1]
    with (out / "lil_curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == [2, 4] * 8
    assert all(float(row["linearity/phase_consistency"]) >= 1 for row in rows)
    assert all(0 <= float(row["val/accuracy"]) <= 1 for row in rows)
    for row in rows:  # the head is linear in its parameters, the rest is not
        assert (float(row["linearity/linearisation_error"]) < 1e-3) == (row["algorithm"] == "anil")
    with Image.open(out / "lil_curves.png") as image:
        assert image.format == "PNG"

    monkeypatch.setattr(lil_curves, "train", lambda *_: pytest.fail("a run was repeated"))
    command(characters, "--seeds", "0", "1")
    command(characters, "--aggregate")


def test_the_same_run_twice_gives_the_same_numbers(characters):
    settings = Settings(**{name.replace("-", "_"): value for name, value in TINY.items()})
    one, other = (lil_curves.train("lil", 0, settings, str(characters)) for _ in range(2))
    assert one["rows"] == other["rows"]
    assert one["test_accuracy"] == other["test_accuracy"]


def test_other_settings_in_one_folder_are_refused(characters):
    command(characters, "--seeds", "1", "--algorithms", "maml")
    with pytest.raises(ValueError, match="other settings: iterations was 4, is 6"):
        command(characters, "--seeds", "1", iterations=6)


def test_bad_options(characters, tmp_path):
    with pytest.raises(ValueError, match="every=9 must be at least 1 and at most iterations=4"):
        command(characters, every=9)
    for shard in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ValueError, match=f"shard='{shard}' must be i/n"):
            planned(["maml"], [0], shard)
    with pytest.raises(FileNotFoundError, match="no finished run"):
        command(characters, "--aggregate")


def test_the_summary_is_that_of_the_rows(tmp_path):
    (tmp_path / "runs").mkdir()
    for seed, final in ((0, 0.9), (1, 0.7)):
        rows = [
            {"iteration": 5 * (i + 1), **dict.fromkeys(PANELS, value), "val/loss": 1.0}
            for i, value in enumerate((0.5, final))
        ]
        run = {
            "algorithm": "lil",
            "seed": seed,
            "settings": {"iterations": 10},
            "rows": rows,
            "test_accuracy": final,
            "processor_seconds": 20.0,
            "torch": "x",
        }
        (tmp_path / "runs" / f"lil-seed{seed}.json").write_text(json.dumps(run))
    found = summarize(tmp_path)["algorithms"]["lil"]
    assert found["final"]["val/accuracy"] == {
        "mean": pytest.approx(0.8), "std": pytest.approx(0.2**0.5 * 0.1**0.5), "seeds": [0.9, 0.7],
    }  # fmt: skip
    assert found["mean_over_training"]["val/accuracy"]["mean"] == pytest.approx(0.65)
    assert found["iterations_to_validation_accuracy"]["0.8"] == [10, None]
    assert found["processor_seconds_per_iteration"]["mean"] == pytest.approx(2.0)
