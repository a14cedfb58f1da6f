"""``check_datamodule``: what a data module promises."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch

from lightning_gp._lightning import LightningDataModule
from lightning_gp.contracts import dealt_by
from lightning_gp.datamodules import EpisodeDataModule
from lightning_gp.datamodules.episodes.class_episodes import FewShotEpisodes
from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.testing.processes import on_processes
from lightning_gp.testing.promises import Checks, InapplicableError, check_promises, require
from lightning_gp.testing.recorder import (
    Environment,
    Recorder,
    as_episodes,
    as_shares,
    environments_of,
    inputs_of,
    sizes_of,
)
from lightning_gp.testing.runs import first_batches, fit, middle, scramble

EPISODES = 6
"""Of each split that are looked at."""


def check_datamodule(make_datamodule: Callable[[], LightningDataModule], skip: Collection[str] = ()) -> Checks:
    """Checks what a data module promises.

    | promise | kept where |
    |---|---|
    | ``items`` | item i depends on (seed, split, i) alone: not on other items, their order, or global random numbers |
    | ``classes`` | no class, and no example, is in two splits |
    | ``apart`` | the support and query set of an environment share no example |
    | ``resumed`` | after an interruption inside an epoch come the batches that would have come |
    | ``processes`` | two processes together see the batches of one, dealt as ``dealt`` says |
    | ``pickled`` | a pickled one gives the same batches |
    | ``hyperparameters`` | checkpoints with its hyperparameters are read without running code |

    Args:
        make_datamodule: builds the data module; its class will do where every argument has a default.
        skip: names of promises to leave out, such as ``"apart"`` where the query set is the support set on purpose, or
            ``"classes"`` for files that hold some images twice.

    Returns:
        The names of the promises that were checked; ``skipped`` says why the others were not.

    Raises:
        TypeError: if ``make_datamodule`` builds no data module.
        ValueError: if ``skip`` names no promise.
        AssertionError: naming the promise that is broken, by how much, and what to change.

    Example::

        def test_my_data():
            check_datamodule(lambda: MyDataModule("data", ways=2))
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        data = make_datamodule()
        if not isinstance(data, LightningDataModule):
            raise TypeError(
                f"make_datamodule built a {type(data).__name__}; check_datamodule takes a function that builds a "
                "LightningDataModule, such as the class itself."
            )
        subject = _Subject(make_datamodule, Path(folder))
        promises = {
            "items": subject.items,
            "classes": subject.classes,
            "apart": subject.apart,
            "resumed": subject.resumed,
            "processes": subject.processes,
            "pickled": subject.pickled,
            "hyperparameters": subject.hyperparameters,
        }
        return check_promises(type(data).__name__, promises, skip)


def drawn(data: EpisodeDataModule, split: str, indices: Sequence[int]) -> list[Environment]:
    """Episodes of a split as a module gets them."""
    return environments_of(data.on_after_batch_transfer(data.episodes(split).__getitems__(indices), 0))


class _Subject:
    """A data module and one function for each promise."""

    def __init__(self, make: Callable[[], LightningDataModule], folder: Path) -> None:
        self.make, self.folder = make, folder

    def episodes(self) -> EpisodeDataModule:
        """A new one, set up, if it is one of episodes."""
        data = self.make()
        if not isinstance(data, EpisodeDataModule):
            raise InapplicableError(f"{type(data).__name__} has no numbered episodes of several splits")
        data.prepare_data()
        data.setup()
        return data

    def batches(self, data: LightningDataModule) -> list[list[Environment]]:
        """Its first training batches."""
        return [[one for each in batch for one in environments_of(each)] for batch in first_batches(data, 3)]

    def items(self) -> None:
        scramble(0)
        expected = self.batches(self.make())
        scramble(1)
        found = self.batches(self.make())
        mend = "draw from (seed, split, index) alone: in draw(), self.uniforms(indices, count) are such random numbers."
        same = sum(one == other for one, other in zip(found, expected, strict=True))
        require(
            same == len(expected),
            f"with other global random numbers {len(expected) - same} of {len(expected)} training batches are others.",
            mend,
        )
        if isinstance(self.make(), EpisodeDataModule):
            for split in SPLITS:
                self._numbered(split, mend)
            self._seeded(mend)

    def _numbered(self, split: str, mend: str) -> None:
        forwards, backwards = self.episodes(), self.episodes()
        together = drawn(forwards, split, range(EPISODES))
        alone = {i: drawn(backwards, split, [i])[0] for i in reversed(range(EPISODES))}
        wrong = [i for i in range(EPISODES) if alone[i] != together[i]]
        require(not wrong, f"items {wrong} of {split} are others when they are drawn alone and backwards.", mend)

    def _seeded(self, mend: str) -> None:
        data, other = self.episodes(), self.make()
        assert isinstance(other, EpisodeDataModule)
        other.seed += 1
        other.prepare_data()
        other.setup()
        first = {split: drawn(data, split, range(EPISODES)) for split in SPLITS}
        another = drawn(other, "train", range(EPISODES))
        require(first["train"] != another, f"seed={data.seed} and seed={other.seed} give the same episodes.", mend)
        for split in ("val", "test"):
            require(first[split] != first["train"], f"the splits train and {split} have the same episodes.", mend)

    def classes(self) -> None:
        data = self.episodes()
        sets = {split: data.episodes(split) for split in SPLITS}
        if data.ways is None:
            raise InapplicableError("it has no classes")
        mend = "give each class to one split, and the images of a class to no other."
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            first, second = sets[one], sets[other]
            if isinstance(first, FewShotEpisodes) and isinstance(second, FewShotEpisodes):
                common = sorted(set(first.data.names) & set(second.data.names))
                require(not common, f"{len(common)} classes are both in {one} and {other}, such as {common[:3]}.", mend)
            inputs = [
                inputs_of(batch.support) | inputs_of(batch.query)
                for batch in (each.__getitems__(range(EPISODES)) for each in (first, second))
            ]
            shared = len(inputs[0] & inputs[1])
            require(not shared, f"{shared} examples are both in episodes of {one} and of {other}.", mend)

    def apart(self) -> None:
        found = [one for batch in first_batches(self.make(), 3) for each in batch for one in each.chunks(1)]
        if all(one.query is None for one in found):
            raise InapplicableError("its environments have no query set")
        shared = [len(inputs_of(one.support) & inputs_of(one.query)) for one in found]
        require(
            not any(shared),
            f"in {sum(map(bool, shared))} of {len(shared)} environments examples are both in the support and the query "
            f"set, {max(shared)} at most.",
            "draw both together without replacement; where the query set is the support set on purpose, skip='apart'.",
        )

    @cached_property
    def whole(self) -> list[list[Environment]]:
        """The batches of a run that leaves a checkpoint of each step in ``folder``."""
        recorder = Recorder()
        fit(recorder, self.make(), self.folder)
        return recorder.seen

    def resumed(self) -> None:
        expected = self.whole
        path = middle(self.folder)
        step = int(path.stem.partition("=")[2])
        recorder = Recorder()
        fit(recorder, self.make(), resume=path)
        missed = [i for i, batch in enumerate(expected[step:]) if recorder.seen[i : i + 1] != [batch]]
        require(
            len(recorder.seen) == len(expected) - step and not missed,
            f"after an interruption at step {step} of {len(expected)} come {len(recorder.seen)} batches, of which "
            f"{len(missed)} are not those that would have come.",
            "use datamodules.loader.ResumableLoader with a ResumableSampler, as the package's base classes do, or save "
            "in the data module's state_dict() how far it is.",
        )

    def processes(self) -> None:
        dealt = dealt_by(self.make())

        def seen(rank: int) -> list[list[Environment]]:
            recorder = Recorder()
            fit(recorder, self.make(), devices=2)
            return recorder.seen

        first, second = on_processes(seen)
        mend = (
            f"deal as dealt={dealt!r} says: each process "
            + ("whole environments that no other has" if dealt == "episodes" else "its share of every environment")
            + ", so that a step sees the same examples as on one; the package's base classes do."
        )
        counts = len(first), len(second), len(self.whole)
        require(
            len(set(counts)) == 1, f"two processes see {counts[0]} and {counts[1]} batches, one sees {counts[2]}.", mend
        )
        together = as_episodes if dealt == "episodes" else as_shares
        for step, (one, other, whole) in enumerate(zip(first, second, self.whole, strict=True)):
            require(
                together(one, other) == together(whole, []),
                f"at step {step} the two processes' batches together are not that of one process: {sizes_of(one)} and "
                f"{sizes_of(other)} for {sizes_of(whole)}.",
                mend,
            )

    def pickled(self) -> None:
        try:
            other = pickle.loads(pickle.dumps(self.make()))
        except Exception as error:
            raise AssertionError(
                f"it cannot be pickled: {error}. To mend it: keep no lambdas, generators or open files in its "
                "attributes."
            ) from error
        require(
            self.batches(other) == self.batches(self.make()),
            "a pickled one gives other batches.",
            "keep what its items depend on in plain attributes.",
        )

    def hyperparameters(self) -> None:
        self.whole  # noqa: B018  # leaves the checkpoints
        try:
            torch.load(middle(self.folder), weights_only=True)
        except Exception as error:
            raise AssertionError(
                f"its hyperparameters cannot be read without running code: {error}. To mend it: save plain numbers, "
                "text, lists and dicts, by hyperparameters.save_plain_hyperparameters(self, names_to_leave_out)."
            ) from error
