"""LightningDataModules whose batches are ``Environments``."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ColoredMNISTDataModule": "colored_mnist",
        "EpisodeDataModule": "base",
        "EpisodeDataset": "episodes",
        "EpisodeSampler": "episodes",
        "ExampleEnvironments": "example_environments",
        "FewShotDataModule": "few_shot",
        "LinearRegressionDataModule": "linear",
        "NamedEnvironmentsDataModule": "named_environments",
        "OmniglotDataModule": "omniglot",
        "SinusoidDataModule": "sinusoid",
    },
)
