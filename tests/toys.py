"""A toy of each kind, as a contributor would write it: the files that are new, and the lines that are added.

Only ``tests/test_contributing.py`` writes them, into a copy of the repository.
"""

from __future__ import annotations

ALGORITHM = '''"""Weight decay by environment."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Rate
from lightning_gp.environments import Environments
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.types import ModuleOptions, Parameters


class ToyDecay(EnvironmentModule):
    """mean_τ [ L_τ(θ) + α ‖θ‖² ].

    Args:
        network: the network.
        decay: α ≥ 0.
        **kwargs: of ``EnvironmentModule``.
    """

    def __init__(self, network: nn.Module, decay: float = 0.1, **kwargs: Unpack[ModuleOptions]) -> None:
        super().__init__(network, **kwargs)
        checks.number(minimum=0, decay=decay)
        self.save_hyperparameters()
        self.decay = decay

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``risk`` and ``toy_norm`` of each environment, (E,)."""
        risks = self.environment_losses(parameters, environments)
        norm = torch.stack([value.square().sum() for value in parameters.values()]).sum()
        return {"risk": risks, "toy_norm": norm.expand(len(risks))}

    def term_weights(self) -> Mapping[str, float]:
        """α on the norm."""
        return {"toy_norm": self.decay}

    def rate(self) -> Rate:
        """The weight of the norm."""

        def put(alpha: float) -> None:
            self.decay = alpha

        return Rate("decay", "weight of the norm α", lambda: (self.decay,), put)
'''
ALGORITHM_PAGE = """# ToyDecay

```python
import torch
from lightning_gp import Environments, ToyDecay

x = torch.rand(3, 4, 1)
ToyDecay(torch.nn.Linear(1, 1), criterion=torch.nn.functional.mse_loss).training_loss(Environments((x, x))).backward()
```

```{eval-rst}
.. autoclass:: lightning_gp.ToyDecay
```
"""
ALGORITHM_TEST = """import torch
from torch.nn import functional as F

from lightning_gp import ERM, Environments, ToyDecay


def test_toy_gradient_is_that_of_erm_plus_two_alpha_theta():
    x = torch.rand(3, 4, 1, dtype=torch.float64)
    network = torch.nn.Linear(1, 1).double()
    weights = list(network.parameters())
    losses = [kind(network, criterion=F.mse_loss).training_loss(Environments((x, x))) for kind in (ERM, ToyDecay)]
    plain, found = (torch.autograd.grad(loss, weights) for loss in losses)
    for a, b, value in zip(found, plain, weights, strict=True):
        torch.testing.assert_close(a, b + 0.2 * value)
"""
CALLBACK = '''"""How large the parameters are."""

from __future__ import annotations

import torch

from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.contracts import Key


class ToySize(Probe):
    """‖θ‖.

    {keys}

    Args:
        **kwargs: see ``Probe``.
    """

    keys = (Key("toy/size", "[0, ∞)", "the norm of all parameters"),)

    def measure(self, measurement: Measurement) -> Report:
        """The norm."""
        norms = [value.detach().norm() for value in measurement.loss.parameters().values()]
        return Report({"toy/size": float(torch.stack(norms).norm())})
'''
CALLBACK_PAGE = """# ToySize

```python
from lightning_gp.callbacks import ToySize

assert "| ``toy/size`` | the norm of all parameters | [0, ∞) |" in ToySize.__doc__
```

```{eval-rst}
.. autoclass:: lightning_gp.callbacks.ToySize
```
"""
CALLBACK_TEST = """from lightning_gp.callbacks import ToySize
from lightning_gp.testing import check_callback


def test_toy_size_keeps_its_promises():
    assert len(check_callback(ToySize)) == 5
"""
DATA = '''"""Random cubics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.episodes.base import EpisodeDataModule
from lightning_gp.datamodules.episodes.regression import RegressionEpisodes, check_dtype


class ToyCubicEpisodes(RegressionEpisodes):
    """y = a x³."""

    def function(self, x: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """``x`` (E, K), ``parameters`` (E, 1) → (E, K)."""
        return parameters * x**3


class ToyCubics(EpisodeDataModule):
    """y = a x³ with a and x uniform in [−1, 1]."""

    def make_episodes(self, split: str, length: int) -> ToyCubicEpisodes:
        """Cubics of ``split``."""
        bounds, dtype = (-1.0, 1.0), check_dtype("float32")
        return ToyCubicEpisodes([bounds], bounds, 5, 5, 0.0, dtype, split, length, self.seed)
'''
DATA_PAGE = """# ToyCubics

```python
from lightning_gp.datamodules import ToyCubics

data = ToyCubics(environments_per_batch=3)
data.setup("fit")
assert next(iter(data.train_dataloader())).support[0].shape == (3, 5, 1)
```

```{eval-rst}
.. autoclass:: lightning_gp.datamodules.ToyCubics
```
"""
DATA_TEST = """from lightning_gp.datamodules import ToyCubics
from lightning_gp.testing import check_datamodule


def test_toy_cubics_keep_their_promises():
    assert len(check_datamodule(lambda: ToyCubics(4, 4, 6, 6))) == 6
"""

FILES = {
    "algorithm": {
        "lightning_gp/modules/toy_decay.py": ALGORITHM,
        "docs/algorithms/toy_decay.md": ALGORITHM_PAGE,
        "tests/modules/test_toy_decay.py": ALGORITHM_TEST,
    },
    "callback": {
        "lightning_gp/callbacks/toy_size.py": CALLBACK,
        "docs/callbacks/toy_size.md": CALLBACK_PAGE,
        "tests/callbacks/test_toy_size.py": CALLBACK_TEST,
    },
    "data module": {
        "lightning_gp/datamodules/episodes/toy_cubics.py": DATA,
        "docs/data/toy_cubics.md": DATA_PAGE,
        "tests/datamodules/test_toy_cubics.py": DATA_TEST,
    },
}
"""What is new, by kind and path."""


def stub(home: str, name: str) -> tuple[str, str]:
    """Where a name goes into a stub: in front of its first import."""
    return "from lightning_gp.", f"from lightning_gp.{home} import {name} as {name}\n"


LINES = {
    "algorithm": {
        "lightning_gp/modules/__init__.pyi": stub("modules.toy_decay", "ToyDecay"),
        "tests/module_cases.py": (
            '    "MAML": Case(',
            '    "ToyDecay": Case(__import__("lightning_gp").ToyDecay, SinusoidMLP, episodes, SQUARED),\n',
        ),
    },
    "callback": {"lightning_gp/callbacks/__init__.pyi": stub("callbacks.toy_size", "ToySize")},
    "data module": {"lightning_gp/datamodules/__init__.pyi": stub("datamodules.episodes.toy_cubics", "ToyCubics")},
}
"""What is added: the text in front of which, and the line."""

CHECKS = """
import re, torch
from torch.nn import functional as F
import lightning_gp
from lightning_gp import ToyDecay, dashboards
from lightning_gp.callbacks import LearningRateBounds, ToySize
from lightning_gp.cli import main
from lightning_gp.datamodules import ToyCubics
from lightning_gp.testing.runs import fit
from lightning_gp.trainability import TrainabilityMap

assert lightning_gp.__file__.startswith(__import__("os").getcwd())
data = lambda: ToyCubics(4, 4, 6, 6)
torch.manual_seed(0)
module = ToyDecay(torch.nn.Linear(1, 1), criterion=F.mse_loss)
result = TrainabilityMap(module, data(), [0.1, 0.2], [0.1, 0.2], iterations=3).run()
assert "decay" in str(result.header) and torch.isfinite(torch.as_tensor(result.losses)).all()
bounds = LearningRateBounds()
fit(module.double(), data(), callbacks=[bounds])
assert bounds.values["learning_rates/edge"] > 0
for key in ("train/toy_norm", "toy/size"):
    found = [panel for panels in dashboards.sections().values() for panel in panels if dashboards.shows(panel, key)]
    assert len(found) == 1, (key, found)
words = ["--model=ToyDecay", "--model.network=lightning_gp.networks.SinusoidMLP", "--data=ToyCubics"]
words += ["--model.criterion=torch.nn.functional.mse_loss", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
words += ["--trainer.callbacks=ToySize", "--model.decay=0.3"]
assert main(["fit", *words]) == 0
print("map, bound, panels, command line")
"""
