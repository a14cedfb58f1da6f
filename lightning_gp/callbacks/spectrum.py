"""What ``HessianEigenvalues`` adds to the largest eigenvalues: the trace, and a picture of the spectral density."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from lightning_gp.callbacks.measurement import Report
from lightning_gp.functional.hessian_product import HessianVectorProduct
from lightning_gp.functional.spectrum import SpectralDensity, spectral_density, trace
from lightning_gp.plots import spectral_density as draw_density

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_spectrum(report: Report, product: HessianVectorProduct, with_trace: bool, with_density: bool) -> None:
    """Adds the trace with its standard error, and the picture of the spectral density, which are estimated now.

    Args:
        report: what is found so far.
        product: with the Hessian.
        with_trace: whether to estimate the trace.
        with_density: whether to estimate the density.
    """
    if with_trace:
        estimate = trace(product)
        report.values["curvature/trace"] = estimate.value
        report.values["curvature/trace_standard_error"] = estimate.standard_error
    if with_density:
        report.pictures["curvature/spectral_density"] = partial(_picture, spectral_density(product))


def _picture(density: SpectralDensity) -> Figure:
    low, high = float(density.nodes.min()), float(density.nodes.max())
    width = (high - low) / 100 or 1.0
    grid = torch.linspace(low - 5 * width, high + 5 * width, 500, dtype=torch.float64)
    return draw_density(grid, density.evaluate(grid, width))
