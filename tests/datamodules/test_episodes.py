"""Few-shot episodes and the sampler that shares them out."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lightning_gp.datamodules import ClassImages, EpisodeSampler
from lightning_gp.datamodules.episodes import FewShotEpisodes


def numbered(counts):
    """One-pixel images whose value is their class, and whose second pixel is the number within the class."""
    images = [[[label, i]] for label, count in enumerate(counts) for i in range(count)]
    names = [f"class {i}" for i in range(len(counts))]
    return ClassImages(np.array(images, dtype=np.uint8), np.array(counts), names)


@given(
    ways=st.integers(1, 6), shots=st.integers(1, 4), queries=st.integers(1, 4), seed=st.integers(0, 99), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_an_episode_is_n_way_k_shot_with_disjoint_support_and_query(ways, shots, queries, seed, data):
    counts = data.draw(st.lists(st.integers(shots + queries, 12), min_size=ways, max_size=9))
    dataset = FewShotEpisodes(numbered(counts), ways, shots, queries, "train", 100, seed)
    (xs, ys), (xq, yq) = dataset.__getitems__([0, 5, 77])
    assert xs.shape == (3, ways * shots, 1, 2)
    assert xq.shape == (3, ways * queries, 1, 2)
    assert ys.dtype == torch.int64
    for e in range(3):
        support = {(int(c), int(i)) for (c, i) in xs[e, :, 0]}
        query = {(int(c), int(i)) for (c, i) in xq[e, :, 0]}
        assert len(support) == ways * shots
        assert len(query) == ways * queries
        assert not support & query
        class_of = dict(zip(ys[e].tolist(), xs[e, :, 0, 0].tolist(), strict=True))
        assert sorted(class_of) == list(range(ways))
        assert len(set(class_of.values())) == ways
        for x, y in ((xs[e], ys[e]), (xq[e], yq[e])):
            assert [class_of[label] for label in y.tolist()] == x[:, 0, 0].tolist()
        assert torch.bincount(ys[e]).tolist() == [shots] * ways
        assert torch.bincount(yq[e]).tolist() == [queries] * ways


def test_labels_are_in_random_class_order():
    dataset = FewShotEpisodes(numbered([3] * 4), 4, 1, 1, "train", 10, 0)
    orders = {tuple(x[:, 0, 0].tolist()) for x in dataset.__getitems__(range(200)).support[0]}
    assert len(orders) == 24


def test_an_item_does_not_depend_on_its_batch():
    dataset = FewShotEpisodes(numbered([8] * 9), 3, 2, 2, "train", 10, 1)
    batch = dataset.__getitems__([4, 11, 2])
    single = dataset[11]
    for stacked, alone in zip(batch.support + batch.query, single.support + single.query, strict=True):
        assert torch.equal(stacked[1], alone)


def test_seed_and_split_change_the_episodes():
    def first(seed, split):
        return FewShotEpisodes(numbered([9] * 50), 5, 1, 2, split, 10, seed)[0].support[0]

    assert torch.equal(first(0, "train"), first(0, "train"))
    assert not torch.equal(first(0, "train"), first(1, "train"))
    assert not torch.equal(first(0, "train"), first(0, "val"))


def test_too_many_ways_or_images_are_refused():
    with pytest.raises(ValueError, match=r"ways=4, but the val split has 3 classes; choose ways <= 3"):
        FewShotEpisodes(numbered([5, 5, 5]), 4, 1, 1, "val", 1, 0)
    with pytest.raises(ValueError, match=r"2 \+ 3 = 5, but class 'class 1' of the train split has 4 images"):
        FewShotEpisodes(numbered([5, 4, 5]), 2, 2, 3, "train", 1, 0)


@given(batch=st.integers(1, 4), steps=st.integers(1, 5), ranks=st.sampled_from([1, 2, 3]), epoch=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_ranks_batches_of_a_step_are_the_batch_of_one_process(batch, steps, ranks, epoch):
    def batches(replicas, rank):
        sampler = EpisodeSampler(batch * ranks * steps, True, replicas, rank)
        sampler.set_epoch(epoch)
        loader = DataLoader(range(10_000), batch_size=batch * ranks // replicas, sampler=sampler, collate_fn=list)
        assert len(loader) == steps
        return list(loader)

    alone = batches(1, 0)
    shared = [batches(ranks, rank) for rank in range(ranks)]
    for step in range(steps):
        assert sorted(alone[step]) == sorted(i for rank in range(ranks) for i in shared[rank][step])


def test_training_epochs_are_fresh_and_evaluation_is_fixed():
    training, evaluation = EpisodeSampler(6, fresh=True), EpisodeSampler(6, fresh=False)
    seen = []
    for epoch in range(3):
        training.set_epoch(epoch)
        evaluation.set_epoch(epoch)
        seen += list(training)
        assert list(evaluation) == list(range(6))
    assert seen == list(range(18))
    assert len(training) == 6


def test_episodes_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="5 episodes cannot be shared equally by 2 devices; use a multiple of 2"):
        EpisodeSampler(5, fresh=False, num_replicas=2, rank=0)


def test_a_distributed_wrapper_around_the_sampler_sees_the_same_epoch():
    from lightning_fabric.utilities.distributed import DistributedSamplerWrapper

    seen = []
    for rank in range(2):
        wrapper = DistributedSamplerWrapper(EpisodeSampler(8, fresh=True), num_replicas=2, rank=rank, shuffle=True)
        wrapper.set_epoch(3)
        seen += list(wrapper)
    assert sorted(seen) == list(range(24, 32))


def mapped(tmp_path):
    data = numbered([6] * 7)
    np.save(tmp_path / "images.npy", data.images)
    return data, data._replace(images=np.load(tmp_path / "images.npy", mmap_mode="r"))


def test_some_classes_are_used_in_place(tmp_path):
    _, data = mapped(tmp_path)
    some = data.of(["class 5", "class 0", "class 3"])
    assert some.images is data.images
    assert some.names == ["class 5", "class 0", "class 3"]
    assert some.first_rows().tolist() == [30, 0, 18]
    episodes = FewShotEpisodes(some, 2, 1, 2, "train", 10, 0)
    drawn = episodes.__getitems__(range(50))
    assert set(drawn.query[0][..., 0, 0].unique().tolist()) == {0, 3, 5}
    for e in range(50):
        labels = [f"class {int(c)}" for c in drawn.support[0][e, :, 0, 0]]
        assert episodes.class_names(e) == labels


def test_another_process_opens_the_cache_itself(tmp_path):
    plain, data = mapped(tmp_path)
    sent = pickle.dumps(FewShotEpisodes(data, 3, 1, 2, "train", 10, 0))
    assert len(sent) < 2_000 + 4 * data.images.nbytes
    received = pickle.loads(sent)
    assert isinstance(received.data.images, np.memmap)
    expected = FewShotEpisodes(plain, 3, 1, 2, "train", 10, 0)
    assert torch.equal(received[4].query[0], expected[4].query[0])
    (tmp_path / "images.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.npy is gone; build it again"):
        pickle.loads(sent)
    pickle.loads(pickle.dumps(expected))


def test_an_episode_of_a_mapped_array_is_not_the_array(tmp_path):
    _, data = mapped(tmp_path)
    x = FewShotEpisodes(data, 3, 1, 2, "train", 10, 0)[0].support[0]
    x.zero_()  # a copy: the cache is read-only
    assert data.images.max() > 0
