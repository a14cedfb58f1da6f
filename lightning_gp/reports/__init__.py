"""A run as one page of HTML, from what it has logged.

The public names are imported when they are first used.
"""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
