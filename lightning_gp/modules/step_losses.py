"""The query losses after each inner step: what is reported of them, and how much the earlier ones count in training.

[A18] A. Antoniou, H. Edwards, A. Storkey, "How to train your MAML", ICLR 2019, section 4 (multi-step loss).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gp.functional.adaptation import Trajectory, over_environments
from lightning_gp.types import Examples, Loss


def earlier_weight(step: int, anneal: int, inner_steps: int) -> float:
    """Share of θ_1 … θ_{S−1} in Σ_k v_k L^te(θ_k): v_k = (1 − t/T)/S for k < S and v_S = 1 − Σ_{k<S} v_k [A18].

    At first all S losses count alike, from step T on only the last does. (The code of [A18] keeps 3 % of the first
    weights to the end.)

    Args:
        step: t, optimizer steps so far.
        anneal: T; 0 for the last loss alone.
        inner_steps: S.

    Example:
        >>> earlier_weight(0, 100, 4), earlier_weight(50, 100, 4), earlier_weight(100, 100, 4)
        (0.75, 0.375, 0.0)
    """
    return max(0.0, 1 - step / anneal) * (inner_steps - 1) / inner_steps if anneal else 0.0


def earlier_losses(loss: Loss, trajectory: Trajectory, query: Examples) -> Tensor:
    """The mean of L^te(θ_1) … L^te(θ_{S−1}) of each environment, (E,).

    Args:
        loss: of one environment.
        trajectory: of S ≥ 2 inner steps.
        query: x (E, Q, *feature), y (E, Q, *target).
    """
    each: list[Tensor] = [
        over_environments(loss, theta, trajectory.shared, *query) for theta in trajectory.parameters[1:-1]
    ]
    return torch.stack(each).mean(0)


@torch.no_grad()
def step_values(
    measure: Callable[..., dict[str, Tensor]], trajectory: Trajectory, query: Examples
) -> dict[str, Tensor]:
    """What is measured at θ_0 … θ_S of each environment, ``<name>_step_<k>``, and at θ_S as ``<name>`` too, (E,) each.

    Args:
        measure: of one environment, numbers by name.
        trajectory: of the inner steps.
        query: x (E, Q, *feature), y (E, Q, *target).
    """
    values: dict[str, Tensor] = {}
    measured: dict[str, Tensor] = {}
    for step, theta in enumerate(trajectory.parameters):
        measured = over_environments(measure, theta, trajectory.shared, *query)
        values.update({f"{name}_step_{step}": value for name, value in measured.items()})
    return {**values, **measured}
