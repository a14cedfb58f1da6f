"""What ``HessianEigenvalues`` adds to the largest eigenvalues: the trace, and a picture of the spectral density."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from lightning_gp.functional.hessian_product import HessianVectorProduct
from lightning_gp.functional.spectrum import SpectralDensity, spectral_density, trace
from lightning_gp.plots import spectral_density as draw_density

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trace_of(product: HessianVectorProduct) -> dict[str, float]:
    """The estimated trace and its standard error, by key."""
    estimate = trace(product)
    return {"curvature/trace": estimate.value, "curvature/trace_standard_error": estimate.standard_error}


def density_of(product: HessianVectorProduct) -> Callable[[], Figure]:
    """Draws the spectral density, which is estimated now."""
    return partial(_picture, spectral_density(product))


def _picture(density: SpectralDensity) -> Figure:
    low, high = float(density.nodes.min()), float(density.nodes.max())
    width = (high - low) / 100 or 1.0
    grid = torch.linspace(low - 5 * width, high + 5 * width, 500, dtype=torch.float64)
    return draw_density(grid, density.evaluate(grid, width))
