from lightning_gp.datamodules.images.sources.dataset_source import DatasetSource as DatasetSource
from lightning_gp.datamodules.images.sources.image_source import Decoding as Decoding
from lightning_gp.datamodules.images.sources.image_source import FileSource as FileSource
from lightning_gp.datamodules.images.sources.image_source import ImageSource as ImageSource
from lightning_gp.datamodules.images.sources.image_source import folder_source as folder_source
from lightning_gp.datamodules.images.sources.image_source import zip_source as zip_source

__all__: list[str]
