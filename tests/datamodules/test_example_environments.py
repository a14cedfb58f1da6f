import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.datamodules.named.pieces import Pieces
from lightning_gp.environments import Environments


def numbered(start, count):
    x = torch.arange(start, start + count, dtype=torch.float32).unsqueeze(1)
    return x, x.clone()


def two(large=6, small=4):
    return {"large": numbered(0, large), "small": numbered(100, small)}


class Items:
    """A map-style dataset of plain numbers."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return [float(index)], [1.0]


def test_full_batches_repeat():
    loader = ExampleEnvironments(two(6, 6), steps_per_epoch=3).train_dataloader()
    batches = list(loader)
    assert len(batches) == 3
    assert isinstance(batches[0], Environments)
    assert batches[0].support[0].shape == (2, 6, 1)
    assert batches[0] is batches[1]


def test_tensors_datasets_and_items():
    data = ExampleEnvironments({"tensors": numbered(0, 3), "set": TensorDataset(*numbered(5, 4)), "items": Items()})
    sizes = [batch.support[0].shape for batch in next(iter(data.train_dataloader()))]
    assert sizes == [(1, 3, 1), (1, 4, 1), (1, 3, 1)]


def test_mini_batches_pass_once_over_the_largest():
    data = ExampleEnvironments(two(6, 4), batch_size=2)
    loader = data.train_dataloader()
    large = torch.cat([batch.support[0][0] for batch in loader])[:, 0]
    small = torch.cat([batch.support[0][1] for batch in loader])[:, 0]
    assert sorted(large.tolist()) == [0, 1, 2, 3, 4, 5]
    assert set(small.tolist()) == {100, 101, 102, 103}
    loader.sampler.set_epoch(1)
    assert torch.cat([batch.support[0][0] for batch in loader])[:, 0].tolist() != large.tolist()


@pytest.mark.parametrize("eval_batch_size", [None, 1, 2, 4, 100])
def test_evaluation_sees_every_example_once(eval_batch_size):
    data = ExampleEnvironments(two(6, 4), test=two(5, 5), eval_batch_size=eval_batch_size)
    for loader, sizes in ((data.val_dataloader(), (6, 4)), (data.test_dataloader(), (5, 5))):
        seen = [[], []]
        for batch in loader:
            batches = [batch] if isinstance(batch, Environments) else batch
            parts = [x for item in batches for x in item.support[0]]
            for environment, part in zip(seen, parts, strict=True):
                environment += part[:, 0].tolist()
        assert [len(set(values)) for values in seen] == list(sizes) == [len(values) for values in seen]


def test_held_out_examples_are_not_trained_on():
    data = ExampleEnvironments(two(10, 20), val_fraction=0.3, seed=1)
    for name, count in (("large", 10), ("small", 20)):
        train, val = (set(data.environments(split)[name][0][:, 0].tolist()) for split in ("train", "val"))
        assert not train & val
        assert len(train | val) == count
        assert len(val) == 0.3 * count
    again = ExampleEnvironments(two(10, 20), val_fraction=0.3, seed=1)
    assert torch.equal(again.environments("val")["large"][0], data.environments("val")["large"][0])


def test_processes_share_every_environment():
    pieces = Pieces(list(two(7, 4).values()), 2, repeat=2)
    assert len(pieces) == 4
    first, second = pieces[0], pieces[3]
    assert [item.support[0].shape[1] for item in first] == [4, 2]
    assert [item.support[0].shape[1] for item in second] == [3, 2]


def test_bad_input():
    x, y = numbered(0, 3)
    with pytest.raises(ValueError, match="'b' is empty"):
        ExampleEnvironments({"a": (x, y), "b": (x[:0], y[:0])})
    with pytest.raises(ValueError, match="unequal lengths"):
        ExampleEnvironments({"a": (x, y[:2])})
    with pytest.raises(ValueError, match="only the number of examples may differ"):
        ExampleEnvironments({"a": (x, y), "b": (x.repeat(1, 2), y)})
    with pytest.raises(ValueError, match="no train environment"):
        ExampleEnvironments({})
    with pytest.raises(ValueError, match="pair of tensors"):
        ExampleEnvironments({"a": 3})
    with pytest.raises(ValueError, match="val_fraction=1"):
        ExampleEnvironments(two(), val_fraction=1)
    with pytest.raises(ValueError, match="at least one example"):
        ExampleEnvironments(two(), val_fraction=0.01).setup()
    with pytest.raises(ValueError, match="batch_size=0"):
        ExampleEnvironments(two(), batch_size=0)
    with pytest.raises(ValueError, match="at most 6"):
        ExampleEnvironments(two(), batch_size=7).train_dataloader()
    with pytest.raises(ValueError, match="no 'test' environments"):
        ExampleEnvironments(two()).test_dataloader()
