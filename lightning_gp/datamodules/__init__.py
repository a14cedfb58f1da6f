"""LightningDataModules whose batches are ``Environments``: episodes, images in classes, named environments."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CIFARFSDataModule": "images.cifar_few_shot",
        "CUBDataModule": "images.cub",
        "ClassFolderDataModule": "images.class_folder",
        "ClassImages": "episodes.class_episodes",
        "ColoredMNISTDataModule": "named.colored_mnist",
        "EpisodeDataModule": "episodes.base",
        "EpisodeDataset": "episodes.datasets",
        "EpisodeSampler": "episodes.datasets",
        "ExampleEnvironments": "named.example_environments",
        "FC100DataModule": "images.cifar_few_shot",
        "FewShotDataModule": "labelled",  # which gives it its from_… constructors
        "ImageClassDataModule": "images.classes",
        "LabelledDataModule": "labelled",
        "LinearRegressionDataModule": "episodes.linear",
        "MiniImageNetDataModule": "images.mini_imagenet",
        "NamedEnvironmentsDataModule": "named.base",
        "OmniglotDataModule": "images.omniglot",
        "SinusoidDataModule": "episodes.sinusoid",
        "StanfordCarsDataModule": "images.cars",
        "TensorDataModule": "labelled",
        "TieredImageNetDataModule": "images.tiered_imagenet",
    },
)
