"""Environments from tables, and one left out for validation."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from lightning_gp.datamodules import ExampleEnvironments

GENERATOR = np.random.default_rng(0)
TABLE = {
    "hospital": ["a", "b", "c", "d"] * 6,
    "age": GENERATOR.normal(50, 10, 24).tolist(),
    "dose": GENERATOR.normal(0, 3, 24).tolist(),
    "y": [0, 1, 1] * 8,
}


def made(**options):
    data = ExampleEnvironments.from_frame(TABLE, environment="hospital", target="y", **options)
    data.setup()
    return data


@pytest.mark.parametrize("leave_out", [None, "b"])
def test_rows_by_environment_standardised_by_those_that_train(leave_out):
    data = made(test=["d"], leave_out=leave_out)
    held = ["d", *([leave_out] if leave_out else [])]
    rows = {name: [i for i, each in enumerate(TABLE["hospital"]) if each == name] for name in "abcd"}
    x = np.array([TABLE["age"], TABLE["dose"]]).T
    seen = np.concatenate([x[rows[name]] for name in "abcd" if name not in held])
    assert data.environment_names["train"] == tuple(name for name in "abc" if name != leave_out)
    assert data.environment_names["val"] == ((leave_out,) if leave_out else tuple("abc"))
    for split, names in data.environment_names.items():
        for name in names:
            found, y = data.environments(split)[name]
            expected = (x[rows[name]] - seen.mean(0)) / seen.std(0)
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
            assert y.tolist() == [[TABLE["y"][i]] for i in rows[name]]


def test_labels_features_and_no_standardisation():
    data = made(features=["dose"], standardize=False, labels=True)
    x, y = data.environments("train")["a"]
    torch.testing.assert_close(x, torch.tensor(TABLE["dose"][::4], dtype=torch.float32).unsqueeze(1))
    assert y.dtype == torch.int64
    assert y.shape == (6,)


def test_a_file_is_the_table(tmp_path):
    path = tmp_path / "patients.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TABLE)
        writer.writerows(zip(*TABLE.values(), strict=True))
    data = ExampleEnvironments.from_csv(path, environment="hospital", target="y", test=["d"])
    data.setup()
    for split in ("train", "test"):
        for name, pair in made(test=["d"]).environments(split).items():
            for ours, theirs in zip(data.environments(split)[name], pair, strict=True):
                torch.testing.assert_close(ours, theirs)
    path.write_text("hospital,y\na,1\nb\n")
    with pytest.raises(ValueError, match="1 cells in row 2"):
        ExampleEnvironments.from_csv(path, environment="hospital", target="y")
    with pytest.raises(FileNotFoundError, match=r"missing\.csv"):
        ExampleEnvironments.from_csv(tmp_path / "missing.csv", environment="hospital", target="y")


def test_a_data_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    data = ExampleEnvironments.from_frame(pandas.DataFrame(TABLE), environment="hospital", target="y", test=["d"])
    torch.testing.assert_close(data.environments("train")["a"], made(test=["d"]).environments("train")["a"])


WRONG = {
    "no column 'ward'": {"environment": "ward"},
    "no column 'bmi'": {"features": ["bmi"]},
    "two": {"target": "hospital"},
    r"test=\['e'\]": {"test": ["e"]},
    "not all": {"test": list("abcd")},
    "no column of numbers": {"features": ["name"]},
    "'gap' has 1 missing": {"features": ["gap"]},
    "does not name the environment of 1 rows": {"environment": "gap", "features": ["age"]},
    r"\['same'\] are constant": {"features": ["same"]},
    "'age' has values that are no class numbers": {"target": "age", "features": ["dose"], "labels": True},
    "leave_out='a' validates": {"leave_out": "a", "val_fraction": 0.5, "features": ["age"]},
}


@pytest.mark.parametrize("message", WRONG)
def test_columns_and_environments_that_cannot_be_used_are_named(message):
    more = {"name": ["x"] * 24, "gap": [float("nan"), *range(23)], "same": [1.0] * 24}
    options = {"environment": "hospital", "target": "y", **WRONG[message]}
    with pytest.raises(ValueError, match=message):
        ExampleEnvironments.from_frame({**TABLE, **more}, **options)


def test_only_a_training_environment_can_be_left_out():
    pair = torch.zeros(4, 2), torch.zeros(4, 1)
    for train, val, message in (
        ({"a": pair, "b": pair}, None, "leave_out='c' names no training environment"),
        ({"c": pair}, None, "the only training environment"),
        ({"a": pair, "c": pair}, {"v": pair}, r"validation environments \['v'\] already"),
    ):
        with pytest.raises(ValueError, match=message):
            ExampleEnvironments(train, val=val, leave_out="c").setup()


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_csv_by_its_separator(tmp_path, separator):
    path = tmp_path / "table.csv"
    rows = [["hospital", "a,b", "y"], *(["x" if i % 2 else "z", i * 0.5, i % 3] for i in range(6))]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    data = ExampleEnvironments.from_csv(path, environment="hospital", target="y", standardize=False)
    data.setup()
    found = torch.cat([data.environments("train")[name][0] for name in ("z", "x")])
    assert found.squeeze(1).tolist() == [0.0, 1.0, 2.0, 0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hospital,x,y\nä,1,2\n".encode("latin-1"), "UTF-8"),
        (b"hospital,x,x,y\na,1,2,3\n", "two columns"),
        (b"hospital,x,y\na,1,2\nb,1\n", "row 2"),
        (b'hospital;x;y\na;"1,5";2\nb;2;3\n', "'x' is no column of numbers"),
        (b"", "no rows"),
    ],
    ids=["latin-1", "repeated name", "short row", "decimal commas", "empty"],
)
def test_bad_csv_is_named(tmp_path, content, words):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ExampleEnvironments.from_csv(path, environment="hospital", target="y")
