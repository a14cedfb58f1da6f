"""Few-shot episodes of arrays of any shape and type, where they lie."""

import pickle

import numpy as np
import pytest
import torch

from lightning_gp.datamodules import FewShotDataModule, TensorDataModule

Y = np.random.RandomState(0).permutation(np.arange(120) % 12)
SMALL = {"ways": 2, "shots": 2, "queries": 3, "environments_per_batch": 4, "fractions": (0.5, 0.25, 0.25)}


def values(shape, dtype):
    """Item m is m everywhere."""
    return np.broadcast_to(np.arange(120).reshape(-1, *[1] * len(shape)), (120, *shape)).astype(dtype)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (7,), (1, 128), (3, 32), (2, 3, 4, 5)])
def test_examples_arrive_whole_with_their_labels(shape, dtype, mapped, tmp_path):
    x = values(shape, dtype)
    if mapped:
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif dtype == "float64":
        x = torch.from_numpy(x.copy())
    data = FewShotDataModule.from_tensors(x, Y, **SMALL)
    data.setup("fit")
    episodes = data.episodes("train")
    for batch in (episodes.__getitems__([0, 5]), pickle.loads(pickle.dumps(episodes)).__getitems__([0, 5])):
        for (found, labels), count in ((batch.support, 4), (batch.query, 6)):
            assert found.shape == (2, count, *shape)
            assert str(found.dtype) == f"torch.{dtype}"
            if dtype != "bool":
                items = found.reshape(2, count, -1)[:, :, 0].real.long()
                names = [episodes.class_names(i) for i in (0, 5)]
                for e in range(2):
                    assert [str(Y[item]) for item in items[e]] == [names[e][label] for label in labels[e]]
    finished = data.on_after_batch_transfer(batch, 0).support[0]
    assert finished.dtype == (torch.float32 if dtype.startswith("float") else found.dtype)


def test_a_memory_mapped_array_stays_in_its_file(tmp_path):
    np.save(tmp_path / "x.npy", values((7,), "float32"))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = FewShotDataModule.from_tensors(x, Y, **SMALL)
    assert data.load_split("train").images.x is x
    assert len(pickle.dumps(data.episodes("train"))) < 3000 + 8 * len(Y)  # the order, not the 3,360 bytes of numbers
    assert not {"x", "y"} & set(data.hparams)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (np.zeros((3, 2)), [0, 1], {}, ValueError, r"x \(3, 2\) and y \(2,\)"),
        ([[0.0]], [0], {}, TypeError, "x is of type list"),
        (np.array([["a"]] * 120), Y, {}, TypeError, "type"),
        (np.zeros((120, 2)), Y + 0.7, {}, TypeError, "labels must be integers, and are not rounded"),
        (np.zeros((120, 2)), Y.astype(str), {}, TypeError, "labels must be integers"),
        (np.zeros((120, 2)), Y, {"random_crop": 1}, ValueError, "are for images"),
        (np.zeros((120, 2)), Y, {"split": {"train": [0], "val": [1], "test": [99]}}, ValueError, "'99' of the test"),
        (np.zeros((120, 2)), Y, {"fractions": (1, 0, 0)}, ValueError, "fractions"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, options, error, message):
    with pytest.raises(error, match=message):
        TensorDataModule(x, y, **{**SMALL, **options})


def test_labels_that_are_whole_floats_and_named_classes():
    data = TensorDataModule(
        np.zeros((120, 2)),
        torch.from_numpy(Y).float(),
        class_names=list("abcdefghijkl"),
        **SMALL,
        split={"train": ["a", 1], "val": [2, "d"], "test": ["e", "f"]},
    )
    assert data.load_split("val").names == ["c", "d"]


def test_small_classes_are_left_out_and_counted(caplog):
    y = np.repeat(np.arange(12), [1, 2, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    split = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}
    options = {**SMALL, "split": {name: list(labels) for name, labels in split.items()}}
    with pytest.raises(ValueError, match="class '0' of the train split has 1 images"):
        TensorDataModule(np.zeros((len(y), 2)), y, **options).setup("fit")
    data = TensorDataModule(np.zeros((len(y), 2)), y, min_images=5, **options)
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("fit")
    assert data.episodes("train").data.names == ["2", "3", "4", "5"]
    told = [record.message for record in caplog.records if "min_images=5" in record.message]
    assert told == [
        "TensorDataModule: 2 of the 6 classes of the train split have fewer than min_images=5 images and are left out, "
        "such as '0' with 1."
    ]
