from lightning_gp.commands.compare import compare as compare
from lightning_gp.diagnosis.measuring import diagnose as diagnose
from lightning_gp.environments import Environments as Environments
from lightning_gp.modules import *  # noqa: F403  # so that a new algorithm is named in one stub
from lightning_gp.reports.page import report as report

__all__: list[str]
__version__: str
