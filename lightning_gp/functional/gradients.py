"""Gradients of every environment on its own, their norms and the angles between them.

Sources: S. Takagi et al., "Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective", 2021 [T21]: gradient norm and cosine similarity at the unadapted parameters, section IX-B.

Everywhere a *stack* is a dict of tensors (E, *shape): one gradient per environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.double_backward import leaf
from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Parameters


def environment_gradients(
    loss: Callable[..., Tensor], parameters: Parameters, examples: Sequence[Tensor]
) -> Parameters:
    """∇L_τ(θ) of each environment, in one forward and one backward pass.

    Args:
        loss: ``loss(parameters, x, y)``, the scalar loss of one environment; it is vmapped.
        parameters: θ, tensors (*shape) shared by all environments; left as they are.
        examples: x (E, K, *feature), y (E, K, *target), or any other tensors (E, ...) that ``loss`` takes.

    Returns:
        Tensors (E, *shape), detached; zero where the loss does not depend on a parameter.

    Raises:
        ValueError: if ``loss`` does not return one number per environment, or depends on no parameter.

    Example:
        >>> def loss(p, x, y):
        ...     return (p["w"] * x - y).square().mean()
        >>> x = torch.ones(2, 3)
        >>> environment_gradients(loss, {"w": torch.tensor(1.0)}, (x, torch.stack([0 * x[0], 2 * x[1]])))["w"]
        tensor([ 2., -2.])
    """
    count = examples[0].shape[0]
    with torch.inference_mode(False), torch.enable_grad():
        # One independent copy per environment: environments do not interact, so the gradient of the sum is every
        # environment's own gradient.
        copies = {
            name: _differentiable(value).expand(count, *value.shape).requires_grad_()
            for name, value in parameters.items()
        }
        losses: Tensor = over_environments(loss, copies, {}, *examples)
        _check_losses(losses, count)
        gradients = torch.autograd.grad(losses.sum(), list(copies.values()), materialize_grads=True)
    return dict(zip(copies, gradients, strict=True))


def gradients_of_losses(losses: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """∇L_τ(θ) of each environment where only the vector of their losses is known.

    One backward pass through the whole graph per environment, so E times the cost of ``environment_gradients``.

    Args:
        losses: maps θ to the losses (E,).
        parameters: θ, tensors (*shape); left as they are. Leaves that require gradients, such as a module's own
            parameters, are differentiated by themselves, so ``losses`` may reach them without the dict.

    Returns:
        Tensors (E, *shape), detached and dense.

    Raises:
        ValueError: if ``losses`` does not return a vector, or depends on no parameter.

    Example:
        >>> gradients_of_losses(lambda p: torch.stack([p["w"], p["w"] ** 2]), {"w": torch.tensor(3.0)})["w"]
        tensor([1., 6.])
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: leaf(value) for name, value in parameters.items()}
        values = losses(dict(leaves))
        _check_losses(values, None)
        wanted = [value for value in leaves.values() if value.requires_grad]  # the loss may have frozen some
        rows = [torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True) for value in values]
    columns = ([dense(gradient) for gradient in column] for column in zip(*rows, strict=True))
    stacks = {id(value): torch.stack(column) for value, column in zip(wanted, columns, strict=True)}
    count = len(values)
    return {
        name: stacks[id(value)] if id(value) in stacks else torch.zeros_like(value).expand(count, *value.shape)
        for name, value in leaves.items()
    }


def gradient_norm(gradients: Parameters) -> Tensor:
    """‖g_τ‖ = (Σ|g|²)^½ over all parameters of each environment [T21, section IX-B].

    Args:
        gradients: a stack, tensors (E, *shape).

    Returns:
        Norms (E,), accumulated in float32 or better; they do not overflow or vanish where the norm itself does not.

    Raises:
        ValueError: if there is no parameter.

    Example:
        >>> gradient_norm({"w": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([4.0, 0.0])})
        tensor([5., 0.])
    """
    _, norms = _unit(gradients)
    return norms


def cosine_similarity(a: Parameters, b: Parameters) -> Tensor:
    """cos(a_τ, b_τ) = Re⟨a_τ, b_τ⟩ / (‖a_τ‖ ‖b_τ‖) of each environment [T21, Fig. 2].

    Args:
        a: a stack, tensors (E, *shape).
        b: a stack with the same names and shapes; E may be 1, to compare with one common direction.

    Returns:
        Cosines in [−1, 1], (E,); NaN where either norm is 0, because then there is no angle.

    Raises:
        ValueError: if the names differ, or there is no parameter.

    Example:
        >>> a = {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
        >>> cosine_similarity(a, {"w": torch.tensor([[2.0, 0.0], [0.0, 3.0]])})
        tensor([1., 0.])
    """
    _check_pair(a, b)
    units_a, _ = _unit(a)
    units_b, _ = _unit(b)
    products = [(units_a[name] * units_b[name]).sum(1) for name in units_a]
    return torch.stack(products).sum(0).clamp(-1, 1)


def inner_product(a: Parameters, b: Parameters) -> Tensor:
    """Re⟨a_τ, b_τ⟩ = Σ a·b over all parameters of each environment [T21, Eq. 7].

    Args:
        a: a stack, tensors (E, *shape).
        b: a stack with the same names and shapes; E may be 1, to compare with one common direction.

    Returns:
        (E,), accumulated in float32 or better.

    Raises:
        ValueError: if the names or the numbers of environments differ, or there is no parameter.

    Example:
        >>> a = {"w": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}
        >>> inner_product(a, {"w": torch.tensor([[3.0, 1.0], [5.0, -1.0]])})
        tensor([ 5., -1.])
    """
    _check_pair(a, b)
    return torch.stack([(matrix(a[name]) * matrix(b[name])).sum(1) for name in a]).sum(0)


def pairwise_cosines(gradients: Parameters) -> Tensor:
    """cos(g_σ, g_τ) between every two environments.

    Args:
        gradients: a stack, tensors (E, *shape).

    Returns:
        A symmetric matrix (E, E) in [−1, 1]; rows and columns of environments with a zero gradient are NaN.

    Raises:
        ValueError: if there is no parameter.

    Example:
        >>> pairwise_cosines({"w": torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])})
        tensor([[ 1.,  0., -1.],
                [ 0.,  1.,  0.],
                [-1.,  0.,  1.]])
    """
    units, _ = _unit(gradients)
    return torch.stack([unit @ unit.T for unit in units.values()]).sum(0).clamp(-1, 1)


def _differentiable(value: Tensor) -> Tensor:
    """A detached alias; tensors made in inference mode have to be copied to be differentiated."""
    return value.clone() if value.is_inference() else value.detach()


def dense(gradient: Tensor) -> Tensor:
    """A gradient of ``Embedding(sparse=True)`` and the like as an ordinary tensor, detached."""
    return gradient.detach() if gradient.layout == torch.strided else gradient.detach().to_dense()


def _check_losses(losses: object, count: int | None) -> None:
    expected = "(E,)" if count is None else f"({count},)"
    if not isinstance(losses, Tensor) or losses.ndim != 1 or (count is not None and losses.shape[0] != count):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"The losses must have shape {expected}, one scalar per environment, got {got}.")
    if not losses.requires_grad:
        raise ValueError(
            "The losses depend on no parameter. Compute them from the dict that is passed in, e.g. with "
            "torch.func.functional_call(network, parameters, x), without detach() or no_grad()."
        )


def _check_pair(a: Parameters, b: Parameters) -> None:
    if a.keys() != b.keys():
        raise ValueError(
            f"a and b are gradients of different parameters: {sorted(a)} and {sorted(b)}; compare gradients of one "
            "network."
        )
    if not a:
        raise ValueError("There are no gradients: the dict of parameters is empty.")
    counts = {stack[name].shape[0] for stack in (a, b) for name in stack} - {1}
    if len(counts) > 1:
        raise ValueError(f"a and b hold {sorted(counts)} environments; both must have the same number, or one have 1.")


def matrix(stack: Tensor) -> Tensor:
    """A stack as a real matrix (E, numel), in float32 or better."""
    return _real(stack).to(torch.promote_types(stack.real.dtype, torch.float32))


def _real(stack: Tensor) -> Tensor:
    """A stack as a matrix (E, numel); a complex number is the two real ones of which Re⟨a, b⟩ is the inner product."""
    stack = torch.view_as_real(stack.resolve_conj()) if stack.is_complex() else stack
    return as_rows(stack)


def _unit(gradients: Parameters) -> tuple[Parameters, Tensor]:
    """The directions, flattened to (E, numel), and the norms (E,) of a stack; a zero gradient's direction is NaN."""
    if not gradients:
        raise ValueError("There are no gradients: the dict of parameters is empty.")
    flat = {name: matrix(value) for name, value in gradients.items()}
    # Squares of gradients below 1e-19 vanish in float32; dividing by the largest entry first keeps them.
    largest = torch.stack([value.abs().amax(1) if value.shape[1] else value.sum(1) for value in flat.values()]).amax(0)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).unsqueeze(1)
    squares = torch.stack([(value / scale).square().sum(1) for value in flat.values()]).sum(0)
    lengths = squares.sqrt().unsqueeze(1)
    return {name: value / scale / lengths for name, value in flat.items()}, (scale * lengths).squeeze(1)
