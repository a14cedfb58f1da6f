"""Labels as integers; nothing is cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def whole_labels(labels: Any, owner: str) -> NDArray[np.int64]:
    """The labels as int64, of the same shape: integers, or floating-point numbers that are whole.

    Raises:
        TypeError: naming the owner and the first label that is none, or their type.

    Example:
        >>> whole_labels([0, 2, 1.0], "y")
        array([0, 2, 1])
    """
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.dtype.kind == "f":
        strange = array[~(np.isfinite(array) & (array == np.floor(array)))]
        if strange.size:
            raise TypeError(f"{owner} has a label {strange.flat[0]!s}; labels must be integers, and are not rounded.")
    elif array.dtype.kind not in "iub":
        kind = type(labels).__name__ if array.ndim == 0 else str(array.dtype)
        raise TypeError(f"{owner} has a label of type {kind}; labels must be integers.")
    return array.astype(np.int64)
