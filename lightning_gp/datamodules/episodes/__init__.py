"""Episodes: their base, regression problems, and classes of which each episode takes a few."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ClassImages": "class_episodes",
        "EpisodeDataModule": "base",
        "EpisodeDataset": "datasets",
        "EpisodeSampler": "datasets",
        "FewShotEpisodes": "class_episodes",
    },
)
