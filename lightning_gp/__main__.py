"""``python -m lightning_gp`` is ``lightning-gp``."""

import sys

from lightning_gp.cli import main

if __name__ == "__main__":
    sys.exit(main())
