"""What is public: the packages that list their names in a stub, found and not named."""

from pathlib import Path

import lightning_gp

HOME = Path(lightning_gp.__file__).parent
PACKAGES = ["", *sorted(f".{stub.parent.name}" for stub in HOME.glob("*/__init__.pyi"))]
"""What follows ``lightning_gp`` in their names."""
