from lightning_gp.testing.callbacks import check_callback as check_callback
from lightning_gp.testing.datamodules import check_datamodule as check_datamodule
from lightning_gp.testing.modules import check_module as check_module
from lightning_gp.testing.processes import on_processes as on_processes
from lightning_gp.testing.promises import Checks as Checks

__all__: list[str]
