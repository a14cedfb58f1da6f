"""Whether the third derivative may be left out of the theory: Tg against H² on a trained sinusoid network.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective, Fig. 5.
[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, appendix C.

The Hessian of the simplified MAML L − (α/2)‖∇L‖² is H − α(Tg + H²), T the third derivative and g the gradient of L.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gp._lightning import pl
from lightning_gp.checks import whole
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.environments import Environments
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.functional.lanczos import leading_eigenpairs
from lightning_gp.functional.spectrum import frobenius_norm
from lightning_gp.functional.third_order import third_order_operators
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.plots import canvas, require_matplotlib, save_figure
from lightning_gp.runs.folders import check_settings, write_json
from lightning_gp.theory.learning_rates import critical_inner_lr, critical_outer_lr
from lightning_gp.theory.third_order import critical_inner_lr_with_tg, critical_outer_lr_with_tg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"tg": "Tg", "h_squared": "H²", "sum": "Tg + H²"}
EIGENVALUE = ("largest eigenvalue", "second largest eigenvalue")
LOSSES = {"mean": "mean loss of 100 environments", "single": "loss of one environment (mean of 10)"}
QUICK = 2000


@dataclass(frozen=True)
class Settings:
    """Those of [T19, appendix C].

    Attributes:
        iterations: outer steps, minutes.
        inner_lr: α.
        outer_lr: β of SGD.
        environments: per batch.
        products: for each Frobenius norm.
        seed: of weights and episodes.
        compile: by torch.compile, which needs a C++ compiler.
    """

    iterations: int = 50_000
    inner_lr: float = 1e-2
    outer_lr: float = 1e-3
    environments: int = 100
    products: int = 300
    seed: int = 0
    compile: bool = True


SETTINGS = Settings()


def tg(quick: bool = False, settings: Settings = SETTINGS, output: Path = Path("runs/tg")) -> dict[str, Any]:
    """Eigenvalues and norms of Tg, H² and Tg + H² on a sinusoid network that MAML has trained by SGD [T21, Fig. 5].

    L is the unadapted query loss: of one batch of environments that training has not seen, as in the paper, and of its
    first ten environments one by one, whose gradients do not cancel.

    Args:
        quick: train 2,000 iterations only, under a minute.
        settings: of training and measurement.
        output: folder for tg.json and tg.png.

    Returns:
        The summary that is written as JSON.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if one is below 1, or the folder holds a result of other settings.
    """
    settings = replace(settings, iterations=QUICK) if quick else settings
    whole(1, environments=settings.environments, products=settings.products)
    whole(1, iterations=settings.iterations)
    check_settings(output / "tg.json", asdict(settings))
    require_matplotlib()
    start = time.perf_counter()
    module, environments = _trained(settings)
    module = module.double()
    environments = torch.utils._pytree.tree_map(lambda tensor: tensor.double(), environments)
    found = {
        "mean": _measured(module, environments, settings),
        "single": _mean([_measured(module, each, settings) for each in list(environments.chunks(1))[:10]]),
    }
    summary = {
        "command": f"lightning-gp reproduce tg --iterations {settings.iterations} --seed {settings.seed}",
        "paper": "T21 Fig. 5: the eigenvalues and the norm of Tg are by far smaller than those of H²",
        "settings": asdict(settings),
        "losses": LOSSES,
        **found,
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    _write(output, summary)
    return summary


def _trained(settings: Settings) -> tuple[MAML, Environments]:
    """The trained module, and a batch of new environments."""
    pl.seed_everything(settings.seed, verbose=False)
    module = MAML(SinusoidMLP(), inner_lr=settings.inner_lr, criterion=F.mse_loss, compile=settings.compile)
    data = SinusoidDataModule(
        environments_per_batch=settings.environments,
        iterations_per_epoch=settings.iterations + 1,
        seed=settings.seed,
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=settings.outer_lr)
    start, recent = time.perf_counter(), []
    for step, batch in enumerate(data.train_dataloader()):
        if step == settings.iterations:
            break
        loss = module.training_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % max(1, settings.iterations // 20) == 0:
            spent = time.perf_counter() - start
            left = spent / (step + 1) * (settings.iterations - step - 1)
            mean = statistics.fmean(recent)
            print(f"iteration {step + 1}/{settings.iterations}, loss {mean:.4f}, {left:.0f} s left", flush=True)
            recent.clear()
    return module, batch


def _measured(module: MAML, environments: Environments, settings: Settings) -> dict[str, Any]:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return module.environment_losses(parameters, environments).mean()

    parameters = module.network_parameters()
    operators = third_order_operators(loss, parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    begin = torch.randn(operators.sum.size, dtype=operators.sum.dtype, generator=generator)
    values: dict[str, Any] = {"loss": float(loss(parameters).detach())}
    hessian = hessian_eigenvalues(loss, parameters, k=2, tol=1e-4)
    values["h"] = {"eigenvalues": hessian.values.tolist(), "residuals": hessian.residuals.tolist()}
    for name, operator in operators._asdict().items():
        pairs = leading_eigenpairs(operator, begin, k=2, tol=1e-4, random_share=1.0)
        norm = frobenius_norm(operator, settings.products, seed=settings.seed)
        values[name] = {
            "eigenvalues": pairs.values.tolist(),
            "residuals": pairs.residuals.tolist(),
            "frobenius_norm": norm.value,
        }
    # The smallest eigenvalue of Tg is minus the largest of −Tg.
    lowest = leading_eigenpairs(lambda vector: -operators.tg(vector), begin, k=1, tol=1e-4, random_share=1.0)
    values["tg"]["smallest_eigenvalue"] = -float(lowest.values[0])
    values["bounds"] = _bounds(values, settings.inner_lr)
    return values


def _bounds(values: dict[str, Any], inner_lr: float) -> dict[str, dict[str, float]]:
    """α_c, and β_c at the α of training: without Tg, and with it by Weyl's inequalities and by [T19, Eq. 49 and 51].

    Negative eigenvalues of H are left out of account, as in [T21]; of the spectra only the ends are known.
    """
    curvature = torch.tensor(values["h"]["eigenvalues"], dtype=torch.float64).clamp(min=0)
    tg = torch.tensor([values["tg"]["eigenvalues"][0], values["tg"]["smallest_eigenvalue"]], dtype=torch.float64)
    top = torch.tensor(values["tg"]["eigenvalues"], dtype=torch.float64)
    return {
        "without Tg": {
            "inner": float(critical_inner_lr(curvature)),
            "outer": float(critical_outer_lr(curvature, inner_lr, complete=False)),
        },
        "with Tg, sure": {
            "inner": float(critical_inner_lr_with_tg(curvature, tg, complete=False)),
            "outer": float(critical_outer_lr_with_tg(curvature, tg, inner_lr, complete=False)),
        },
        "with Tg, T19": {
            "inner": float(critical_inner_lr_with_tg(curvature, top, "takagi2019")),
            "outer": float(critical_outer_lr_with_tg(curvature, top, inner_lr, "takagi2019")),
        },
    }


def _mean(measurements: Sequence[Any]) -> Any:
    """The mean of nested numbers, place by place."""
    first = measurements[0]
    if isinstance(first, dict):
        return {key: _mean([each[key] for each in measurements]) for key in first}
    if isinstance(first, list):
        return [_mean(each) for each in zip(*measurements, strict=True)]
    return statistics.fmean(measurements)


def _write(folder: Path, summary: dict[str, Any]) -> None:
    write_json(folder / "tg.json", summary)
    figure, panels = canvas(3, 2, 11 / 3, 3)
    for row, key in zip((panels[:3], panels[3:]), LOSSES, strict=True):
        _draw(row, summary[key], LOSSES[key])
    figure.suptitle(f"Third-order curvature of sinusoid MAML after {summary['settings']['iterations']} iterations")
    (picture,) = save_figure(figure, folder / "tg")
    for key, title in LOSSES.items():
        print(f"\n{title}: {summary[key]['loss']:.4g}\n{'':10}{'λ_1':>12}{'λ_2':>12}{'Frobenius':>12}")
        for name, label in NAMES.items():
            values = summary[key][name]
            numbers = [*values["eigenvalues"], values["frobenius_norm"]]
            print(f"{label:10}" + "".join(f"{number:12.4g}" for number in numbers))
        for name, bound in summary[key]["bounds"].items():
            print(f"{name:14} α_c {bound['inner']:<10.4g} β_c {bound['outer']:.4g}")
    print(f"\nPicture: {picture}   Numbers: {folder / 'tg.json'}", flush=True)


def _draw(panels: Sequence[Axes], values: dict[str, Any], title: str) -> None:
    heights = [[values[name]["eigenvalues"][index] for name in NAMES] for index in (0, 1)]
    heights.append([values[name]["frobenius_norm"] for name in NAMES])
    for panel, numbers, label in zip(panels, heights, (*EIGENVALUE, "Frobenius norm"), strict=True):
        bars = panel.bar(list(NAMES.values()), numbers, color=["tab:orange", "tab:blue", "tab:green"])
        panel.bar_label(bars, [f"{number:.3g}" for number in numbers])
        panel.margins(y=0.15)
        panel.set_ylabel(label)
    panels[1].set_title(title)
