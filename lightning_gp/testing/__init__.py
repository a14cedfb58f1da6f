"""The promises that modules, callbacks and data modules make, as checks that a subclass of yours runs in one line."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
