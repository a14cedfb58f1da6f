from __future__ import annotations

import pytest
import torch

from lightning_gp.environments import Environments, as_batches, count_of, stack


def batch(count: int = 5) -> Environments:
    x = torch.arange(count * 6.0).reshape(count, 3, 2)
    return Environments((x, x[..., 0]), (x[:, :2] + 1, x[:, :2, 0]))


def test_chunks_put_together_are_the_batch():
    pieces = list(batch().chunks(2))
    assert [count_of(piece) for piece in pieces] == [2, 2, 1]
    for split in ("support", "query"):
        for index in (0, 1):
            joined = torch.cat([piece.split(split)[index] for piece in pieces])
            torch.testing.assert_close(joined, batch().split(split)[index])


def test_query_falls_back_to_support():
    support_only = batch()._replace(query=None)
    assert support_only.split("query") is support_only.support
    with pytest.raises(ValueError, match=r"split='train'.*'support' or 'query'"):
        batch().split("train")


def test_clones_of_inference_tensors_can_be_recorded():
    with torch.inference_mode():
        inference = batch()
    copied = inference.map(torch.clone)
    assert not copied.support[0].is_inference()
    torch.testing.assert_close(copied.query[1], inference.query[1])


def test_stack_is_the_inverse_of_taking_apart():
    whole = batch()
    singles = [
        Environments((whole.support[0][e], whole.support[1][e]), (whole.query[0][e], whole.query[1][e]))
        for e in range(5)
    ]
    for one, other in zip(stack(singles), whole, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ((torch.zeros(3, 4), torch.zeros(3, 4)), TypeError, "batch of type Environments.*got tuple"),
        ({"x": 1}, TypeError, "got dict"),
        ([], TypeError, "got list"),
        (Environments((torch.zeros(3, 4, 1), torch.zeros(3, 5))), ValueError, r"support.*\(3, 4, 1\).*\(3, 5\)"),
        (Environments((torch.zeros(3), torch.zeros(3))), ValueError, "both must begin with"),
        (Environments((torch.zeros(3, 0, 1), torch.zeros(3, 0))), ValueError, "support set is empty"),
        (
            Environments((torch.zeros(3, 4, 1), torch.zeros(3, 4)), (torch.zeros(2, 4, 1), torch.zeros(2, 4))),
            ValueError,
            "support has 3 environments but query has 2",
        ),
    ],
)
def test_refusals(bad, error, message):
    with pytest.raises(error, match=message):
        as_batches(bad)
