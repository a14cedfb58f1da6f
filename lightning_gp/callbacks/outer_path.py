"""The path that the parameters take while an optimizer changes them, and how straight and even it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp.callbacks.probe_batch import MAX_SAVED_BYTES
from lightning_gp.callbacks.shards import joined, part, sharded
from lightning_gp.functional.gradients import dense


class OuterPath:
    """The parameters θ_0, θ_1, …, θ_S after each step, of which only the lengths of the steps are kept.

    Args:
        parameters: what the optimizer changes in place; if sharded, every process has to make the same calls.

    Attributes:
        steps: S, the number of steps so far.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.spread = parameters, sharded(parameters)
        self.begin()

    def begin(self) -> None:
        """A new path starts from the parameters as they are now."""
        self.start = [own.clone() for own in self._own(self.parameters)]
        self.last = [own.clone() for own in self.start]
        self.lengths: list[Tensor] = []
        self.gradients: dict[int, list[Tensor]] = {}

    @property
    def steps(self) -> int:
        """Steps since the path began."""
        return len(self.lengths)

    def add_step(self) -> None:
        """The parameters have taken a step."""
        self.lengths.append(self._distance(self.last))
        torch._foreach_copy_(self.last, self._own(self.parameters))

    def add_gradient(self, optimizer: Optimizer, position: int) -> None:
        """Keeps the norm of the gradient with which an optimizer is about to step.

        Args:
            optimizer: a torch optimizer.
            position: which of the trainer's optimizers it is.
        """
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients:
            self.gradients.setdefault(position, []).append(self._norm(self._own(gradients)))

    def consistencies(self) -> dict[str, float]:
        """``phase_consistency``, Σ_k ‖θ_{k+1} − θ_k‖ / ‖θ_S − θ_0‖, and ``loss_gradient_ratio`` from two steps on.

        The latter is the mean of ‖g(θ_k)‖ / ‖g(θ_0)‖ over the steps k = 1 … S−1 of all optimizers. It is
        ``amplitude_consistency`` too, as the loss is the one output that is known of such a module.
        """
        length = float(torch.stack(self.lengths).sum())
        distance = float(self._distance(self.start))
        ratios = [norms[k] / norms[0] for norms in self.gradients.values() for k in range(1, len(norms))]
        values = {"phase_consistency": _phase(length, distance)}
        if ratios:
            values["loss_gradient_ratio"] = values["amplitude_consistency"] = float(torch.stack(ratios).mean())
        return values

    def state(self) -> dict[str, Any]:
        """Tensors and lists for ``load``; empty before the first step, if sharded, or too large for a checkpoint."""
        if not self.steps or self.spread or sum(tensor.nbytes for tensor in self.start) > MAX_SAVED_BYTES:
            return {}
        gradients = {position: torch.stack(norms) for position, norms in self.gradients.items()}
        return {"start": self.start, "lengths": torch.stack(self.lengths), "gradients": gradients}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on with a saved path, whose end are the parameters as they are now; ignores that of other parameters."""
        start = state.get("start", [])
        if not start or [tensor.shape for tensor in start] != [tensor.shape for tensor in self.parameters]:
            return
        self.start = [old.to(new) for old, new in zip(start, self.parameters, strict=True)]
        device = self.parameters[0].device
        self.lengths = list(state["lengths"].to(device))
        self.gradients = {position: list(norms.to(device)) for position, norms in state["gradients"].items()}

    def _own(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What this process holds of them."""
        return [part(tensor) if self.spread else dense(tensor) for tensor in tensors]

    def _distance(self, others: list[Tensor]) -> Tensor:
        return self._norm(list(torch._foreach_sub(self._own(self.parameters), others)))

    def _norm(self, own: list[Tensor]) -> Tensor:
        """Of all that the processes hold."""
        total: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each).float() for each in own]))
        return joined({"": total})[""] if self.spread else total


def _phase(length: float, distance: float) -> float:
    if not math.isfinite(length + distance):
        return math.nan
    if not distance:
        return 1.0 if length == 0 else math.inf
    return max(1.0, length / distance)  # the triangle inequality holds only up to rounding
