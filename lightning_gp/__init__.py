"""Gradient-based multi-environment learning for PyTorch Lightning.

The public names are imported when they are first used, so ``import lightning_gp`` is cheap and a missing optional
dependency hurts only whoever needs it.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
