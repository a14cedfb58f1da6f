from lightning_gp.trainability.engine import CellTrainer as CellTrainer
from lightning_gp.trainability.engine import Outcome as Outcome
from lightning_gp.trainability.grid import decades as decades
from lightning_gp.trainability.grid import parse_rates as parse_rates
from lightning_gp.trainability.map import TrainabilityMap as TrainabilityMap
from lightning_gp.trainability.plot import plot_map as plot_map
from lightning_gp.trainability.result import TrainabilityResult as TrainabilityResult
from lightning_gp.trainability.storage import merge as merge
from lightning_gp.trainability.stream import BatchStream as BatchStream

__all__: list[str]
