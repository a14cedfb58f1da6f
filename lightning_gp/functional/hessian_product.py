"""Products with the Hessian of a loss, without the matrix.

One gradient graph is built and kept; each product is a single backward pass through it, which costs half of what
building the graph anew would.

Source:
    [P94] B. A. Pearlmutter (1994), Fast exact multiplication by the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce as fold
from typing import overload

import torch
from torch import Tensor

from lightning_gp.functional.cheap_layers import CheapLayers
from lightning_gp.functional.double_backward import (
    check_loss,
    check_parameters,
    check_twice_differentiable,
    differentiable_gradients,
    explain,
    leaf,
)
from lightning_gp.functional.norms import WrittenOutNorms, check_norms, differentiates_norms

Loss = Callable[[dict[str, Tensor]], Tensor]
Reduce = Callable[[Tensor], Tensor]


class HessianVectorProduct:
    """The linear map v -> ∇²L(θ) v, on one gradient graph that is kept for every product [P94].

    Built by :func:`hessian_vector_product`. Changing the parameters in place afterwards makes the graph stale; autograd
    then raises on the next product instead of returning a wrong one.

    Attributes:
        value: the loss, a scalar.
        gradient: ∇L(θ), flat, shape (size,); until `forget_gradient`.
        size: number of parameters in all.
        dtype: dtype of flat vectors, the parameters' own and at least float32.
        device: device of flat vectors.
        shapes: name -> shape, in the order in which a flat vector holds them.
    """

    def __init__(self, loss: Loss, parameters: Mapping[str, Tensor], reduce: Reduce | None = None) -> None:
        check_parameters(parameters)
        first = next(iter(parameters.values()))
        self.reduce = reduce
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.dtype = fold(torch.promote_types, (p.dtype for p in parameters.values()), torch.float32)
        self.device = first.device
        self.size = sum(parameter.numel() for parameter in parameters.values())
        # Forked, so that dropout inside the loss draws what it would have drawn but leaves the caller's stream alone.
        devices = [first.device] if first.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            self._leaves = {name: leaf(parameter) for name, parameter in parameters.items()}
            self.value, gradients = self._differentiated(loss)
            # One tensor is both the output that products differentiate and the gradient to read: kept once. Where a
            # gradient has no graph it is constant in θ, and its rows of the Hessian are zero.
            self._output = torch.cat(
                [
                    torch.zeros(leaf.numel(), dtype=self.dtype, device=self.device)
                    if entry is None
                    else entry.reshape(-1).to(self.dtype)
                    for entry, leaf in zip(gradients, self._leaves.values(), strict=True)
                ]
            )
        gradient = self._output.detach()
        self.gradient = gradient if reduce is None else reduce(gradient.clone())

    def _differentiated(self, loss: Loss) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with CheapLayers():
            value = loss(dict(self._leaves))
        check_loss(value)
        if differentiates_norms(value):  # a loss that holds a gradient
            with WrittenOutNorms():
                value = loss(dict(self._leaves))
            check_norms(value)
        gradients = differentiable_gradients(value, list(self._leaves.values()))
        check_twice_differentiable(gradients)
        return value.detach(), gradients

    def forget_gradient(self) -> None:
        """Give back the memory of `gradient`, which is as long as the parameters and which no product needs."""
        del self.gradient
        # Autograd wants the output's shape and graph only, not its numbers.
        self._output.untyped_storage().resize_(0)

    @overload
    def __call__(self, vector: Tensor) -> Tensor: ...
    @overload
    def __call__(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __call__(self, vector: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Multiply by the Hessian.

        Args:
            vector: flat, shape (size,), or a dict with the parameters' names and shapes.

        Returns:
            ∇²L(θ) v, of the same kind as `vector`.

        Raises:
            ValueError: names or shapes are not those of the parameters.
            RuntimeError: an operation inside the loss has no double backward.
        """
        if isinstance(vector, Tensor):
            if vector.shape != (self.size,):
                raise ValueError(f"a flat vector must have shape ({self.size},), got {tuple(vector.shape)}")
            return self._multiply(vector)
        shapes = {name: entry.shape for name, entry in vector.items()}
        if shapes != self.shapes:
            raise ValueError(f"a vector must have the parameters' names and shapes {self.shapes}, got {shapes}")
        return self.unflatten(self._multiply(torch.cat([vector[name].reshape(-1) for name in self.shapes])))

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a flat vector, shape (size,), into a dict of views with the parameters' names and shapes."""
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def _multiply(self, vector: Tensor) -> Tensor:
        entries: list[Tensor | None] = [None] * len(self.shapes)
        if self._output.requires_grad:
            leaves, vector = list(self._leaves.values()), vector.to(self._output)
            with torch.inference_mode(False), torch.enable_grad():
                try:  # nothing may hold on to the tuple that autograd returns: its entries are freed one by one
                    entries = [*torch.autograd.grad(self._output, leaves, vector, retain_graph=True, allow_unused=True)]
                except RuntimeError as error:
                    raise explain(error) from error
        return self._flat(entries)

    def _flat(self, entries: list[Tensor | None]) -> Tensor:
        """Join what autograd returned, giving each entry back as soon as it is copied: they are as large as the net."""
        flat = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for i, piece in enumerate(flat.split([shape.numel() for shape in self.shapes.values()])):
            entry, entries[i] = entries[i], None
            if entry is None:
                piece.zero_()
            else:
                piece.copy_(entry.reshape(-1))
        return flat if self.reduce is None else self.reduce(flat)


def hessian_vector_product(
    loss: Loss, parameters: Mapping[str, Tensor], *, reduce: Reduce | None = None
) -> HessianVectorProduct:
    """Differentiate the loss once and keep the graph, to multiply vectors with its Hessian: v -> ∇²L(θ) v.

    Leaves `.grad`, `requires_grad` and the random state as they are. Whatever `loss` itself changes (batch-norm
    buffers, modes) is the caller's: `torch.func.functional_call` with clones of the buffers changes nothing.

    Args:
        loss: maps a dict of parameters to a scalar.
        parameters: name -> tensor, floating-point, on one device. Those that do not enter the loss count as zeros.
        reduce: applied to the flat gradient and to every flat product, e.g. a mean over the ranks of a process group.

    Returns:
        A callable that takes and returns a flat vector, or a dict like `parameters`; see
        :class:`HessianVectorProduct`.

    Raises:
        ValueError: no parameters, or they are not floating-point, or on several devices.
        TypeError: the loss is not a tensor with one element.
        ValueError: the loss does not depend on the parameters.
        RuntimeError: an operation inside the loss has no double backward (raised by the first product).

    Example:
        >>> product = hessian_vector_product(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])})
        >>> product(torch.ones(2))
        tensor([ 6., 12.])
    """
    return HessianVectorProduct(loss, parameters, reduce)
