"""The data modules of the package keep the promises that are shipped for others, and broken ones are told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_gp.datamodules import (
    ClassImages,
    EpisodeDataModule,
    EpisodeDataset,
    FewShotDataModule,
    LinearRegressionDataModule,
    SinusoidDataModule,
)
from lightning_gp.environments import Environments
from lightning_gp.testing import check_datamodule
from tests.module_cases import full_batches, mini_batches

PROMISES = {"items", "classes", "apart", "resumed", "processes", "pickled", "hyperparameters"}
SMALL = {"environments_per_batch": 4, "iterations_per_epoch": 4, "val_episodes": 6, "test_episodes": 6}


class Images(FewShotDataModule):
    """Random images; no class is in two splits."""

    names = {"train": "abcd", "val": "efg", "test": "hij"}  # noqa: RUF012  # nobody writes to it

    def load_split(self, split):
        names = list(self.names[split])
        images = np.random.default_rng(ord(names[0])).integers(0, 256, (6 * len(names), 5, 5), dtype=np.uint8)
        return ClassImages(images, np.full(len(names), 6), names)


def images(kind=Images, **options):
    return kind(ways=2, shots=1, queries=2, **SMALL, **options)


def tensors():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 7, generator=generator), torch.arange(120) % 20
    return FewShotDataModule.from_tensors(x, y, ways=2, shots=1, queries=2, **SMALL)


SOUND = {
    "sinusoid": (lambda: SinusoidDataModule(**SMALL), {"classes"}),
    "linear": (lambda: LinearRegressionDataModule(queries=3, same_data=False, **SMALL), {"classes"}),
    "images": (images, set()),
    "augmented images": (lambda: images(random_crop=1, horizontal_flip=True, color_jitter=0.2), set()),
    "tensors": (tensors, set()),
    "named, full batches": (full_batches, {"classes", "apart"}),
    "named, mini-batches": (mini_batches, {"classes", "apart"}),
}


@pytest.mark.parametrize("name", SOUND)
def test_data_modules_keep_their_promises(name):
    make, skipped = SOUND[name]
    done = check_datamodule(make)
    assert set(done) == PROMISES - skipped
    assert set(done.skipped) == skipped


# -- broken in one way each ---------------------------------------------------------------------------------------


class Episodes(EpisodeDataset):
    """y = a x."""

    def numbers(self, indices):
        return self.uniforms(indices, 7)

    def draw(self, indices):
        numbers = torch.from_numpy(self.numbers(indices)).float()
        x, y = numbers[:, 1:, None], (numbers[:, :1] * numbers[:, 1:]).unsqueeze(-1)
        return Environments((x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:]))


class Lines(EpisodeDataModule):
    dataset = Episodes

    def __init__(self, **options):
        super().__init__(**{**SMALL, **options})

    def make_episodes(self, split, length):
        return self.dataset(split, length, self.seed)


class GlobalEpisodes(Episodes):
    def numbers(self, indices):
        return np.random.rand(len(indices), 7)  # the mistake


class GlobalState(Lines):
    dataset = GlobalEpisodes


class CountedEpisodes(Episodes):
    drawn = 0

    def numbers(self, indices):
        self.drawn += 1
        return super().numbers(indices) + self.drawn


class Ordered(Lines):
    dataset = CountedEpisodes


class Seedless(Lines):
    def make_episodes(self, split, length):
        return Episodes(split, length, 0)


class Splitless(Lines):
    def make_episodes(self, split, length):
        return Episodes("train", length, self.seed)


class Leaking(Images):
    names = {"train": "abcd", "val": "def", "test": "hij"}  # noqa: RUF012  # nobody writes to it


class Renamed(Images):
    """The test classes are those of training under other names."""

    def load_split(self, split):
        found = super().load_split("train" if split == "test" else split)
        return found._replace(names=[f"{split}{i}" for i in range(len(found.names))])


class SharedEpisodes(Episodes):
    def draw(self, indices):
        batch = super().draw(indices)
        (x, y), (xq, yq) = batch
        return Environments((x, y), (torch.cat([x[:, :1], xq], 1), torch.cat([y[:, :1], yq], 1)))


class Shared(Lines):
    dataset = SharedEpisodes


class PlainLoader(Lines):
    """A loader that starts each epoch, resumed or not, from its beginning, and gives every process all of it."""

    def train_dataloader(self):
        data, each = self.episodes("train"), self.environments_per_batch
        return DataLoader(data, each, sampler=DistributedSampler(data, 1, 0, shuffle=False), collate_fn=lambda b: b)


class Mislabelled(Lines):
    """Says that each process has a share of every environment, and deals whole ones."""

    dealt = "shares"


class Holding(Lines):
    def __init__(self, **options):
        super().__init__(**options)
        self.transform = lambda batch: batch


class Odd:
    """No plain value."""


class Unsafe(Lines):
    def __init__(self, **options):
        super().__init__(**options)
        self.save_hyperparameters({"odd": Odd()})


BROKEN = {
    GlobalState: ("items", "with other global random numbers 3 of 3 training batches are others"),
    Ordered: ("items", r"items \[.*\] of train are others when they are drawn alone and backwards"),
    Seedless: ("items", "seed=0 and seed=1 give the same episodes"),
    Splitless: ("items", "the splits train and val have the same episodes"),
    Leaking: ("classes", r"1 classes are both in train and val, such as \['d'\]"),
    Renamed: ("classes", r"\d+ examples are both in episodes of train and of test"),
    Shared: ("apart", r"in 12 of 12 environments examples are both in the support and the query set, 1 at most"),
    PlainLoader: ("resumed", "after an interruption at step 2 of 6 come"),
    Mislabelled: ("processes", "at step 0 the two processes' batches together are not that of one process: 2 env"),
    Holding: ("pickled", "cannot be pickled"),
    Unsafe: ("hyperparameters", "cannot be read without running code"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_data_module_is_refused_by_name_of_the_promise(kind):
    promise, message = BROKEN[kind]
    make = (lambda: images(kind)) if issubclass(kind, Images) else kind
    with pytest.raises(AssertionError, match=rf"{kind.__name__} breaks the promise '{promise}': .*{message}") as caught:
        check_datamodule(make, skip=PROMISES - {promise})
    assert "To mend it: " in str(caught.value)


def test_nothing_is_dealt():
    with pytest.raises(AssertionError, match=r"breaks the promise 'processes'.*together are not that of one process"):
        check_datamodule(PlainLoader, skip=PROMISES - {"processes"})


def test_a_sound_one_is_sound():
    assert set(check_datamodule(Lines)) == PROMISES - {"classes"}


def test_mistakes_in_the_call():
    with pytest.raises(TypeError, match="make_datamodule built a int"):
        check_datamodule(lambda: 3)
