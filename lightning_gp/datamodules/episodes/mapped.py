"""Memory-mapped arrays that another process opens itself, in place of a copy that it would be sent."""

from __future__ import annotations

from mmap import mmap
from typing import Any, Literal, NamedTuple

import numpy as np


class _Mapped(NamedTuple):
    filename: Any
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]


def packed(array: Any) -> Any:
    """What to pickle in place of a memory-mapped file; anything else, also a part of such a file, as it is."""
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap) and array.filename):
        return array
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    return _Mapped(array.filename, array.dtype, array.offset, array.shape, order)


def unpacked(content: Any) -> Any:
    """The array of ``packed``, read-only.

    Raises:
        FileNotFoundError: if the file is gone.
    """
    if not isinstance(content, _Mapped):
        return content
    try:
        return np.memmap(content.filename, content.dtype, "r", content.offset, content.shape, content.order)
    except (FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"The memory-mapped file {content.filename} is gone; build it again (prepare_data() does so for images)."
        ) from error
