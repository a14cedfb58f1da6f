"""Episodes: their base, regression problems, and classes of which each episode takes a few."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
