"""``HessianEigenvalues``: how curved the loss is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.losses import AnyLoss, EnvironmentLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.probe_batch import MAX_SAVED_BYTES
from lightning_gp.contracts import Key
from lightning_gp.functional.curvature import (
    HessianVectorProduct,
    hessian_eigenvalues,
    hessian_vector_product,
    warm_start,
)
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.spectrum import SpectralDensity, spectral_density, trace
from lightning_gp.plots import require_matplotlib
from lightning_gp.plots import spectral_density as draw_density

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HessianEigenvalues(Probe):
    """The k largest (algebraic) eigenvalues of ∇²L(θ), by Lanczos on Hessian-vector products.

    L is the mean loss over the environments of the probe batch at the unadapted parameters (query sets), or with
    ``objective="training"`` what training minimises on it: adapted, with penalties. For modules without environments
    both are the module's loss.

    Each search ends only when, as far as a random vector can tell, no eigenvalue above the last one is missing, copies
    of repeated eigenvalues included. From the second on it starts from the last eigenvectors, which saves products
    (``warm_start=False`` searches anew each time). The vectors are saved in checkpoints as one (the blend
    of them that a warm start uses) of up to 64 MB; beyond that a resumed run starts cold once.

    | key | meaning | range |
    |---|---|---|
    | ``curvature/eigenvalue_<i>`` | λ_i, i = 1 … k, largest first | (−∞, ∞) |
    | ``curvature/residual_<i>`` | ‖H v_i − λ_i v_i‖: some eigenvalue is within this distance of λ_i | [0, ∞) |
    | ``curvature/converged`` | 1 where every value is as good as ``tol`` asks, else 0 | {0, 1} |
    | ``curvature/products`` | Hessian-vector products of this search | [1, ``max_products``] |
    | ``curvature/trace`` | tr ∇²L(θ), estimated by Hutch++, with ``trace=True`` | (−∞, ∞) |
    | ``curvature/trace_standard_error`` | of that estimate | [0, ∞) |
    | ``curvature/spectral_density`` | picture, with ``density=True``: by stochastic Lanczos quadrature | |

    All are NaN if the loss or its derivatives are not finite. The random vectors are the same at every measurement.

    Cost: 15 to 30 products for two eigenvalues to 1e-3, from the second search on somewhat fewer, each as long as two
    backward passes of the probe batch, whose gradient graph is kept in memory meanwhile. A smaller ``probe_size`` saves
    both. ``trace`` adds 30 products, ``density`` 120 and a basis of 30 vectors.

    Args:
        k: number of eigenvalues; the learning-rate theory needs the two largest.
        objective: ``"loss"`` or ``"training"``, see above.
        tol: relative error allowed in each eigenvalue.
        trace: also estimate the trace.
        density: draw the spectral density once per epoch (needs matplotlib).
        warm_start: start from the last eigenvectors, see above.
        max_products: products allowed per search; None for the default of ``functional.hessian_eigenvalues``.
        **kwargs: see ``Probe``.

    Raises:
        ValueError: if an argument is out of range, or (in ``setup``) k exceeds the number of trainable parameters.
        RuntimeError: before the first optimizer step, if an operation in the loss has no double backward.
    """

    keys = (
        Key("curvature/eigenvalue_<i>", "(−∞, ∞)", "λ_i, i = 1 … k, largest first"),
        Key("curvature/residual_<i>", "[0, ∞)", "‖H v_i − λ_i v_i‖: some eigenvalue is within this distance of λ_i"),
        Key(
            "curvature/converged",
            "{0, 1}",
            "1 where every value is as good as ``tol`` asks, else 0",
        ),
        Key("curvature/products", "[1, ``max_products``]", "Hessian-vector products of this search"),
        Key("curvature/trace", "(−∞, ∞)", "tr ∇²L(θ), estimated by Hutch++, with ``trace=True``"),
        Key("curvature/trace_standard_error", "[0, ∞)", "of that estimate"),
        Key("curvature/spectral_density", "", "picture, with ``density=True``: by stochastic Lanczos quadrature"),
    )

    keeps_graph = True

    def __init__(
        self,
        k: int = 2,
        objective: Literal["loss", "training"] = "loss",
        tol: float = 1e-3,
        trace: bool = False,
        density: bool = False,
        warm_start: bool = True,
        max_products: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r} must be a whole number of at least 1.")
        if objective not in ("loss", "training"):
            raise ValueError(f"objective={objective!r} is unknown; use 'loss' or 'training'.")
        if not 0 < tol < 1:
            raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 1e-3.")
        if max_products is not None and max_products < k:
            raise ValueError(f"max_products={max_products!r} must be at least k={k}, or None.")
        if density:
            require_matplotlib()
        self.k, self.objective, self.tol, self.max_products = k, objective, tol, max_products
        self.trace, self.density, self.warm_start = trace, density, warm_start

    def begin(self) -> None:
        """Also forgets what was found."""
        super().begin()
        self.eigenvalues: Tensor | None = None
        self._start: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also compares k with the number of parameters."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.loss is None:
            return
        coupled = isinstance(self.loss, EnvironmentLoss) and self.loss.couples_environments
        if coupled and self.objective == "training":
            raise ValueError(
                f"objective='training' adds up environments, but the objective of {type(pl_module).__name__} couples "
                "them. Use objective='loss', or loss_fn=lambda module, batch: module.training_loss(batch)."
            )
        if not any(isinstance(each, torch.nn.UninitializedParameter) for each in self.loss.parameters().values()):
            self._check_k(self.loss)

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One product, and k again, for parameters that are made by the first forward pass."""
        self._check_k(loss)
        function = loss.objectives if self.objective == "training" else loss.losses
        product = hessian_vector_product(lambda theta: function(theta, piece).mean(), loss.parameters())
        product(product.gradient)

    def _check_k(self, loss: AnyLoss) -> None:
        size = sum(parameter.numel() for parameter in loss.parameters().values())
        if size < self.k:
            raise ValueError(
                f"k={self.k} eigenvalues were asked for, but {type(loss.module).__name__} has only {size} trainable "
                f"parameters; choose k <= {size}."
            )

    def measure(self, measurement: Measurement) -> Report:
        """The eigenvalues of the mean over all environments."""
        parameters = measurement.loss.parameters()
        size = sum(parameter.numel() for parameter in parameters.values())
        loss = partial(measurement.mean_loss, training=self.objective == "training")
        with plain_kernels(second_order=True):
            pairs = hessian_eigenvalues(
                loss,
                parameters,
                self.k,
                self.tol,
                initial=self._start if self._start is not None and self._start.numel() == size else None,
                max_products=self.max_products,
                reduce=measurement.ranks.sum,
            )
        self.eigenvalues = pairs.values
        if self.warm_start and bool(pairs.vectors.isfinite().all()):
            self._start = warm_start(pairs.vectors)
        report = Report()
        for i, (value, residual) in enumerate(zip(pairs.values, pairs.residuals, strict=True), start=1):
            report.values[f"curvature/eigenvalue_{i}"] = float(value)
            report.values[f"curvature/residual_{i}"] = float(residual)
        report.values["curvature/converged"] = float(pairs.converged)
        report.values["curvature/products"] = pairs.products
        if self.trace or self.density:
            with plain_kernels(second_order=True):
                product = hessian_vector_product(loss, parameters, reduce=measurement.ranks.sum)
            self._spectrum(product, report)
        return report

    def _spectrum(self, product: HessianVectorProduct, report: Report) -> None:
        if self.trace:
            estimate = trace(product)
            report.values["curvature/trace"] = estimate.value
            report.values["curvature/trace_standard_error"] = estimate.standard_error
        if self.density:
            density = spectral_density(product)
            report.pictures["curvature/spectral_density"] = partial(_density_picture, density)

    def state_dict(self) -> dict[str, Any]:
        """The probe batch and the start of the next search."""
        small = self._start is not None and self._start.nbytes <= MAX_SAVED_BYTES
        return {**super().state_dict(), "start": self._start if small else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        super().load_state_dict(state_dict)
        self._start = state_dict.get("start") if self.warm_start else None


def _density_picture(density: SpectralDensity) -> Figure:
    low, high = float(density.nodes.min()), float(density.nodes.max())
    width = (high - low) / 100 or 1.0
    grid = torch.linspace(low - 5 * width, high + 5 * width, 500, dtype=torch.float64)
    return draw_density(grid, density.evaluate(grid, width))
