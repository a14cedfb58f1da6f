"""Networks of the papers. Each has two submodules, ``body`` (features) and ``head`` (the last linear layer)."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
