"""LightningDataModules whose batches are ``Environments``."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CIFARFSDataModule": "cifar_few_shot",
        "CUBDataModule": "cub",
        "ClassFolderDataModule": "class_folder",
        "ColoredMNISTDataModule": "colored_mnist",
        "EpisodeDataModule": "base",
        "EpisodeDataset": "episodes",
        "EpisodeSampler": "episodes",
        "ExampleEnvironments": "example_environments",
        "FC100DataModule": "cifar_few_shot",
        "FewShotDataModule": "few_shot",
        "ImageClassDataModule": "image_classes",
        "LabelledDataModule": "labelled",
        "LinearRegressionDataModule": "linear",
        "MiniImageNetDataModule": "mini_imagenet",
        "NamedEnvironmentsDataModule": "named_environments",
        "OmniglotDataModule": "omniglot",
        "SinusoidDataModule": "sinusoid",
        "StanfordCarsDataModule": "cars",
        "TieredImageNetDataModule": "tiered_imagenet",
    },
)
