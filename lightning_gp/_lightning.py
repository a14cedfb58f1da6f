"""The one place that imports Lightning, so that both of its namespaces work.

``pytorch_lightning`` is used if it is installed, otherwise ``lightning.pytorch``. A ``LightningModule`` of the one does
not run in a ``Trainer`` of the other; set ``LIGHTNING_GP_NAMESPACE`` to either name to force the choice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

_NAMESPACES = ("pytorch_lightning", "lightning.pytorch")


def _namespace() -> str:
    forced = os.environ.get("LIGHTNING_GP_NAMESPACE")
    if forced:
        if forced not in _NAMESPACES:
            raise ImportError(f"LIGHTNING_GP_NAMESPACE={forced!r} is unknown; use one of {', '.join(_NAMESPACES)}.")
        return forced
    for name in _NAMESPACES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return name
    raise ImportError("Neither pytorch_lightning nor lightning is installed; run `pip install pytorch-lightning`.")


NAMESPACE = _namespace()

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = importlib.import_module(NAMESPACE)

takes = importlib.import_module(f"{NAMESPACE}.utilities.signature_utils").is_param_in_hook_signature
"""By which Lightning decides what it hands to a step."""
Callback = pl.Callback
LightningDataModule = pl.LightningDataModule
LightningModule = pl.LightningModule
Trainer = pl.Trainer


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """The Trainer's callbacks, which it does not declare."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


__all__ = ["NAMESPACE", "Callback", "LightningDataModule", "LightningModule", "Trainer", "callbacks_of", "pl", "takes"]
