# No __all__: with one that is not a list, a star import of this package gives type checkers nothing.
from lightning_gp.modules.base import EnvironmentModule as EnvironmentModule
from lightning_gp.modules.erm import ERM as ERM
from lightning_gp.modules.gradient_penalty import GradientPenalty as GradientPenalty
from lightning_gp.modules.implicit_maml import ImplicitMAML as ImplicitMAML
from lightning_gp.modules.irm import IRMv1 as IRMv1
from lightning_gp.modules.irm import REx as REx
from lightning_gp.modules.lil import LIL as LIL
from lightning_gp.modules.lil_pretraining import LILPretraining as LILPretraining
from lightning_gp.modules.maml import MAML as MAML
from lightning_gp.modules.maml_variants import ANIL as ANIL
from lightning_gp.modules.maml_variants import BOIL as BOIL
from lightning_gp.modules.maml_variants import FOMAML as FOMAML
from lightning_gp.modules.maml_variants import MetaSGD as MetaSGD
from lightning_gp.modules.named import NamedEnvironmentModule as NamedEnvironmentModule
from lightning_gp.modules.reptile import Reptile as Reptile
