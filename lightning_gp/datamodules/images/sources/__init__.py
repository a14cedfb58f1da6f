"""Where images come from: folders, zip archives, pickles, labelled data sets; safely, and read only when needed."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DatasetSource": "dataset_source",
        "Decoding": "image_source",
        "FileSource": "image_source",
        "ImageSource": "image_source",
        "folder_source": "image_source",
        "zip_source": "image_source",
    },
)
