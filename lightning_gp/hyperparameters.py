"""Hyperparameters as plain Python, so that every checkpoint can be read with ``weights_only=True``."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Numpy's scalars and arrays as numbers and lists, paths as text, and containers as dicts, lists and tuples.

    Containers are known by behaviour, so those of OmegaConf are among them. Everything else, such as functions and
    tensors, stays what it is.

    Example:
        >>> from pathlib import Path
        >>> plain({"root": Path("data"), "rates": np.array([0.5, 1.0]), "shots": np.int64(5)})
        {'root': 'data', 'rates': [0.5, 1.0], 'shots': 5}
    """
    if isinstance(value, np.ndarray):
        return plain(value.tolist())  # of objects, perhaps
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value))
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, set, frozenset)):
        kind = next(kind for kind in (tuple, set, frozenset) if isinstance(value, kind))
        return kind(plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [plain(item) for item in value]
    return value


def save_plain_hyperparameters(owner: Any, ignore: Sequence[str] = ()) -> None:
    """``owner.save_hyperparameters(ignore=…)``, and what is saved is plain; to be called in ``__init__``, as that is.

    Args:
        owner: a LightningModule or LightningDataModule.
        ignore: arguments that are no hyperparameters.
    """
    frame = inspect.currentframe()
    owner.save_hyperparameters(ignore=list(ignore), frame=None if frame is None else frame.f_back)
    owner._set_hparams(plain(owner.hparams))
    owner._hparams_initial = copy.deepcopy(owner._hparams)
