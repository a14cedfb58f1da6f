"""What all episodic data modules share: arguments, splits, loaders."""

from __future__ import annotations

from torch.utils.data import DataLoader

from lightning_gp._lightning import LightningDataModule
from lightning_gp.checks import whole
from lightning_gp.contracts import Dealt
from lightning_gp.datamodules.episodes.datasets import EpisodeDataset, EpisodeSampler
from lightning_gp.datamodules.loader import ResumableLoader, as_it_is, replicas_of
from lightning_gp.environments import Environments
from lightning_gp.hyperparameters import save_plain_hyperparameters

_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: ("train", "val", "test")}


class EpisodeDataModule(LightningDataModule):
    """Base of the data modules: a subclass says what an episode is, everything else is here.

    Extension points, in the order in which they are called:

    1. ``__init__``: checks its arguments, calls ``super().__init__`` (which saves all arguments as hyperparameters) and
       sets ``ways``.
    2. ``prepare_data()`` (optional): downloads, builds caches; one process per machine calls it.
    3. ``make_episodes(split, length)``: returns the :class:`EpisodeDataset` of a split.
    4. ``on_after_batch_transfer(batch, dataloader_idx)`` (optional): what is better done on the device.

    Args:
        environments_per_batch: E, environments (episodes) in a meta-batch, **over all devices**: with n devices each
            gets E / n of them, and one step sees the same episodes as on a single device.
        iterations_per_epoch: training meta-batches in an epoch. Each epoch brings new episodes.
        val_episodes: validation episodes, the same ones in each epoch.
        test_episodes: test episodes.
        seed: decides which episodes are drawn; split and index do the rest.
        num_workers: of the ``DataLoader``. Drawing is cheap: 0 is usually fastest.

    Attributes:
        dealt: every process draws whole episodes of its own.
        ways: number of classes per episode, which must be the output size of the network; None for regression.

    Raises:
        ValueError: if a number is too small, or cannot be divided by the number of devices.
    """

    dealt: Dealt = "episodes"
    ways: int | None = None
    unsaved: tuple[str, ...] = ()  # arguments that are no hyperparameters, such as data

    def __init__(
        self,
        environments_per_batch: int = 32,
        iterations_per_epoch: int = 500,
        val_episodes: int = 600,
        test_episodes: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        whole(1, environments_per_batch=environments_per_batch, iterations_per_epoch=iterations_per_epoch)
        whole(1, val_episodes=val_episodes, test_episodes=test_episodes)
        whole(0, seed=seed, num_workers=num_workers)
        save_plain_hyperparameters(self, self.unsaved)
        self.environments_per_batch = int(environments_per_batch)  # DataLoader takes no numpy integers
        self.seed = int(seed)
        self.num_workers = int(num_workers)
        self._lengths = {
            "train": iterations_per_epoch * environments_per_batch,
            "val": val_episodes,
            "test": test_episodes,
        }
        self._episodes: dict[str, EpisodeDataset] = {}

    def make_episodes(self, split: str, length: int) -> EpisodeDataset:
        """The dataset of ``"train"``, ``"val"`` or ``"test"``: ``length`` episodes, seeded by ``self.seed``."""
        raise NotImplementedError(f"{type(self).__name__} must define make_episodes(split, length).")

    def setup(self, stage: str | None = None) -> None:
        """Makes the datasets of the stage, so that bad input shows before training starts."""
        for split in _STAGE_SPLITS.get(stage, ()):
            self.episodes(split)
            self._sampler(split)

    def episodes(self, split: str) -> EpisodeDataset:
        """The dataset of a split; item i is episode i."""
        if split not in self._lengths:
            raise ValueError(f"split={split!r} is unknown; use one of {', '.join(self._lengths)}.")
        if split not in self._episodes:
            self._episodes[split] = self.make_episodes(split, self._lengths[split])
        return self._episodes[split]

    def train_dataloader(self) -> DataLoader[Environments]:
        """Fresh episodes each epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Environments]:
        """The same episodes each time."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Environments]:
        """The same episodes each time."""
        return self._loader("test")

    def _sampler(self, split: str) -> EpisodeSampler:
        replicas = replicas_of(self.trainer)
        devices = replicas["num_replicas"]
        for name, value in (("environments_per_batch", self.environments_per_batch), (split, self._lengths[split])):
            if value % devices:
                argument = name if name == "environments_per_batch" else f"{name}_episodes"
                raise ValueError(
                    f"{argument}={value} counts episodes over all devices and cannot be shared equally by {devices} "
                    f"devices; choose a multiple of {devices}."
                )
        return EpisodeSampler(self._lengths[split], fresh=split == "train", **replicas)

    def _loader(self, split: str) -> DataLoader[Environments]:
        sampler = self._sampler(split)
        return ResumableLoader(
            self.episodes(split),
            batch_size=self.environments_per_batch // sampler.num_replicas,
            sampler=sampler,
            collate_fn=as_it_is,  # EpisodeDataset.__getitems__ has stacked it
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
