"""Eigenvalues of a probe batch's loss from gradients alone: for shards, and kernels without a double backward."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from lightning_gp.callbacks.losses import Piece, Skipped
from lightning_gp.callbacks.measurement import Measurement
from lightning_gp.callbacks.shards import DTENSOR, gradients_of_shards, local, reshard
from lightning_gp.checks import first_of
from lightning_gp.functional.differences import Measured, eigenvalues_by_differences
from lightning_gp.functional.long_vectors import HERE, Space
from lightning_gp.functional.processes import processes, sum_over_processes
from lightning_gp.types import Parameters, Split


class Displaced:
    """∇L at θ + h v, flat; of sharded weights the part of this process. The weights are put back bitwise by ``end``.

    Args:
        measurement: the probe batch and its loss.
        split: whose loss.
    """

    def __init__(self, measurement: Measurement, split: Split) -> None:
        self.measurement, self.split = measurement, split
        self.parameters = measurement.loss.parameters()
        if measurement.spread:
            check_evenly(self.parameters)
        self.own = [local(each).detach() for each in self.parameters.values()]
        self.start = [each.clone() for each in self.own]
        self.replay = measurement.replay()

    def space(self) -> Space:
        """Of the flat vectors."""
        if not self.measurement.spread:
            return HERE
        device = self.own[0].device

        def total(own: Tensor) -> Tensor:
            return sum_over_processes(own.to(device)).to(own.device)

        return Space(total, torch.distributed.get_rank(), processes())

    def length(self) -> float:
        """‖θ‖."""
        return self.space().norm(torch.stack([torch.linalg.vector_norm(each.double()) for each in self.start]))

    def __call__(self, vector: Tensor | None, step: float) -> Tensor:
        """The gradient of the mean over the environments of all processes."""
        self.replay()
        self._move(vector, step)
        if self.measurement.spread:
            return self._of_shards()
        loss = self.measurement.mean_loss(self.parameters, split=self.split)
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        pairs = zip(found, self.own, strict=True)
        return self.measurement.ranks.sum(
            torch.cat([(torch.zeros_like(own) if each is None else each.detach()).reshape(-1) for each, own in pairs])
        )

    def end(self) -> None:
        """The weights are what they were."""
        self._move(None, 0.0)

    @torch.no_grad()
    def _move(self, vector: Tensor | None, step: float) -> None:
        reshard(self.measurement.loss.module)  # whole copies of weights are of the last ones
        parts = [None] * len(self.own) if vector is None else vector.split([each.numel() for each in self.own])
        for own, start, part in zip(self.own, self.start, parts, strict=True):
            own.copy_(start)
            if part is not None:
                own.add_(part.view_as(own), alpha=step)

    def _of_shards(self) -> Tensor:
        """As ``Measurement.gradients``, of the mean of each piece where it has several losses."""
        loss, total, kept = self.measurement.loss, torch.zeros(()), 0
        for piece, count in zip(self.measurement.pieces, self.measurement.counts, strict=True):
            with suppress(Skipped):
                mean, weight = partial(self._mean, piece), partial(float, count)
                stack = gradients_of_shards(mean, self.parameters, loss.module, weight)
                total = total + torch.cat([each.reshape(-1) for each in stack.values()])
                kept += count
        (everything,) = self.measurement.ranks.totals(kept)
        if not everything:
            raise Skipped
        return total / everything

    def _mean(self, piece: Piece) -> Tensor:
        return self.measurement.loss.losses(self.parameters, piece, self.split).mean().reshape(1)


def check_evenly(parameters: Parameters) -> None:
    """Refuses weights of which several processes hold the same numbers.

    Raises:
        ValueError: naming them.
    """
    whole = [
        name
        for name, each in parameters.items()
        if not isinstance(each, DTENSOR)
        or math.prod(each.device_mesh.size(i) for i, place in enumerate(each.placements) if place.is_shard())
        != processes()
    ]
    if whole:
        shown = first_of(whole)
        raise ValueError(
            f"products='differences' needs every trainable parameter sharded over all processes; {shown} are not. Call "
            "fully_shard on the module that holds them, over the whole data-parallel mesh."
        )


def measured_by_differences(
    measurement: Measurement, k: int, tol: float, split: Split, initial: Tensor | None, max_products: int | None
) -> Measured:
    """The k largest eigenvalues of the Hessian of the mean loss; see ``functional.differences``."""
    displaced = Displaced(measurement, split)
    try:
        return eigenvalues_by_differences(
            displaced,
            displaced.length(),
            k,
            tol,
            initial=initial,
            max_products=max_products,
            space=displaced.space(),
        )
    finally:
        displaced.end()
