from lightning_gp.datamodules.episodes.base import EpisodeDataModule as EpisodeDataModule
from lightning_gp.datamodules.episodes.class_episodes import ClassImages as ClassImages
from lightning_gp.datamodules.episodes.class_episodes import FewShotEpisodes as FewShotEpisodes
from lightning_gp.datamodules.episodes.datasets import EpisodeDataset as EpisodeDataset
from lightning_gp.datamodules.episodes.datasets import EpisodeSampler as EpisodeSampler

__all__: list[str]
