"""Lightning without the remarks that a user of the command line can do nothing about."""

from __future__ import annotations

import logging
import re
import warnings

from lightning_gp._lightning import NAMESPACE

REMARKS = re.compile(
    r"litlogger|litmodels|^💡|Seed set to|^(GPU|TPU|HPU) available: (False|True), us(ed|ing): (False|True|0)"
    r"|^(Restoring states|Loaded model weights|Restored all states) from|^`Trainer\.\w+` stopped: `max_(epochs|steps)"
)
"""Advertisement, what is asked for or shown anyway, and what the end of a command says better."""
WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # deprecations inside Lightning
    r".*LightningCLI's args parameter",  # words of the caller are meant
    r".*Experiment logs directory .* exists",  # `runs.run_folder` has seen to it: nothing is deleted
    r".*Checkpoint directory .* exists and is not empty",
    r".*does not have many workers",  # episodes are drawn in the main process by design
    r".*smaller than the logging interval",
)


class _Remarks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return REMARKS.search(record.getMessage()) is None


_FILTER = _Remarks()


def quiet() -> None:
    """Filters remarks and warnings in this process; what a user can act on is still shown."""
    fabric = "lightning_fabric" if NAMESPACE == "pytorch_lightning" else "lightning.fabric"
    for home in (NAMESPACE, fabric):
        for name in (home, f"{home}.utilities.rank_zero", f"{home}.utilities.seed"):
            logger = logging.getLogger(name)
            if _FILTER not in logger.filters:
                logger.addFilter(_FILTER)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
