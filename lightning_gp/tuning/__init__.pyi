from lightning_gp.tuning.module_map import ModuleMap as ModuleMap
from lightning_gp.tuning.suggestion import Suggestion as Suggestion
from lightning_gp.tuning.trials import Trial as Trial
from lightning_gp.tuning.tuner import LearningRateTuner as LearningRateTuner

__all__: list[str]
