from lightning_gp.comparison.intervals import Estimate as Estimate
from lightning_gp.comparison.intervals import Row as Row
from lightning_gp.comparison.intervals import difference as difference
from lightning_gp.comparison.intervals import mean as mean
from lightning_gp.comparison.outcome import Result as Result
from lightning_gp.comparison.table import Comparison as Comparison

__all__: list[str]
