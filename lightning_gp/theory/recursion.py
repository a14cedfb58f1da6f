"""The linear recursion that a step of an optimizer is near a minimum, and where it stops to converge.

The recursion and its symbols are those of :mod:`~lightning_gp.theory.optimizers`.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recursion:
    """The linear recursion of this module's docstring, but for P, W and the rate.

    Attributes:
        momentum: μ.
        gain: γ.
        direct: a.
        buffered: b.
    """

    momentum: float = 0.0
    gain: float = 1.0
    direct: float = 0.0
    buffered: float = 1.0

    @property
    def stiffness(self) -> float:
        """The factor a + bγ + μa of a curvature where the sign of θ changes from step to step."""
        return self.direct * (1 + self.momentum) + self.buffered * self.gain

    def critical_curvature(self, rate: float, decay: float = 0.0) -> float:
        """The largest real c at which steps of rate β converge: (1 + μ)(2 − βw) / (β(a + bγ + μa)).

        Args:
            rate: β > 0.
            decay: w, decoupled.

        Example:
            >>> Recursion().critical_curvature(0.1)
            20.0
            >>> round(Recursion(momentum=0.9, gain=0.1).critical_curvature(0.1), 6)  # Adam: 38/β
            380.0
        """
        return (1 + self.momentum) * (2 - rate * decay) / (rate * self.stiffness)

    def critical_rate(self, curvature: complex, decay: float = 0.0) -> float:
        """The smallest rate β at which steps no longer converge in a direction of curvature c.

        A curvature that is not real belongs to an update that is no gradient, such as FOMAML's. Directions of Re c ≤ 0
        repel at any rate and are left out of account, as in ``critical_outer_lr``: ∞.

        Args:
            curvature: c.
            decay: w.

        Example:
            >>> Recursion().critical_rate(20.0)
            0.1
        """
        if curvature.real <= 0:
            return math.inf
        if curvature.imag == 0:
            return (1 + self.momentum) * 2 / (curvature.real * self.stiffness + (1 + self.momentum) * decay)
        high = 2 * self.critical_rate(complex(curvature.real), decay)  # a turning direction is no more stable
        low = 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.spectral_radius(curvature, middle, decay) < 1 else (low, middle)
        return high

    def spectral_radius(self, curvature: complex, rate: float, decay: float = 0.0) -> float:
        """The larger modulus of the two roots of the characteristic polynomial.

        Args:
            curvature: c.
            rate: β.
            decay: w.
        """
        kept = 1 - rate * decay
        trace = kept + self.momentum - rate * curvature * (self.direct + self.buffered * self.gain)
        determinant = self.momentum * (kept - rate * curvature * self.direct)
        root = cmath.sqrt(trace * trace - 4 * determinant)
        return max(abs(trace + root), abs(trace - root)) / 2
