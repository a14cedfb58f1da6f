"""How many environments are computed at once: fast, within bounded memory.

The rule of ``vectorize="auto"``, from the figures of ``benchmarks/``:

1. a network with convolutions on the CPU: one environment at a time. It is bound by arithmetic; batching different
   weights (grouped convolutions) only adds traffic.
2. a network that ``vmap`` cannot run (recurrent layers, Python that looks at values, old autograd functions): one
   environment at a time.
3. anything else: as many at once as keep what autograd stores under ``memory_budget`` (1 GiB, or a quarter of what is
   free on an accelerator), measured on the first environment of the first batch.

One environment at a time on the CPU, images are laid out channels last, which two-dimensional convolutions compute 1.1
to 1.5 times as fast, second derivatives included; whatever follows them keeps the layout.

``True`` forces all at once, ``False`` one at a time, a number that many. The result is the same up to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gp.environments import Environments, count_of
from lightning_gp.types import Examples

Vectorize: TypeAlias = bool | int | Literal["auto"]
Objective: TypeAlias = Callable[[Environments], Tensor]

MEMORY_BUDGET = 2**30
"""Bytes that autograd may store for one chunk of environments under ``vectorize="auto"`` on a CPU."""
FREE_SHARE = 0.25
"""On an accelerator, the same as a share of what is free of its memory: there, many at once are what makes it fast."""


def check_vectorize(value: Vectorize) -> None:
    """Refuses anything but True, False, a positive number and ``"auto"``.

    Raises:
        ValueError: naming the value.
    """
    if value == "auto" or isinstance(value, bool) or (isinstance(value, int) and value >= 1):
        return
    raise ValueError(
        f"vectorize={value!r}; allowed are 'auto', True (all at once), False (one at a time), or a number."
    )


def has_convolutions(network: nn.Module) -> bool:
    """Whether any layer of ``network`` is a convolution."""
    return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in network.modules())


def channels_last(environments: Environments) -> Environments:
    """One environment's images (1, K, C, height, width), in memory ordered (K, height, width, C); all else as it is."""

    def laid_out(examples: Examples) -> Examples:
        x, y = examples
        if x.ndim != 5 or x.device.type != "cpu":
            return examples
        # With C = 1 both layouts are the same memory, but `contiguous` then leaves strides that name the wrong one.
        C, height, width = x.shape[2:]
        images = x[0].contiguous(memory_format=torch.channels_last)
        return images.as_strided(images.shape, (C * height * width, 1, C * width, C)).unsqueeze(0), y

    query = environments.query
    return Environments(laid_out(environments.support), None if query is None else laid_out(query))


def chunk_size(
    vectorize: Vectorize,
    environments: Environments,
    network: nn.Module,
    objective: Objective,
    losses: Objective,
    inputs: Sequence[Tensor],
) -> int:
    """Environments per chunk.

    Whether ``vmap`` can run the network is tried on two environments: losses, objectives and their gradients against
    those one by one. Under ``"auto"`` a network that it cannot run is computed one environment at a time, which is said
    once.

    Args:
        vectorize: the user's choice.
        environments: the largest batch at hand, of E environments.
        network: the network.
        objective: the training objective of some environments, (E,).
        losses: their losses at the unadapted parameters, (E,).
        inputs: what the objective is differentiated by.

    Returns:
        Between 1 and E.

    Raises:
        RuntimeError: if ``vectorize`` asks for several environments at once, and ``vmap`` cannot run the network.
        ValueError: if the objective of an environment depends on the others of its chunk.
    """
    count = count_of(environments)
    device = environments.support[0].device
    if vectorize is False or count == 1 or (vectorize == "auto" and device.type == "cpu" and has_convolutions(network)):
        return 1
    reason = why_not_vectorised(environments, objective, losses, inputs)
    if reason is not None and vectorize != "auto":
        raise RuntimeError(
            f"vectorize={vectorize!r}: {type(network).__name__} cannot be computed for several environments at once "
            f"({reason}). Set vectorize=False to compute them one at a time."
        )
    if reason is not None:
        warnings.warn(
            f"{type(network).__name__} cannot be computed for several environments at once ({reason}); they are "
            "computed one at a time. vectorize=False says the same without this warning.",
            stacklevel=2,
        )
        return 1
    if vectorize is True:
        return count
    if isinstance(vectorize, int):
        return min(vectorize, count)
    one = next(environments.chunks(1))
    return max(1, min(count, memory_budget(device) // max(1, stored_bytes(lambda: objective(one).sum(), device))))


def memory_budget(device: torch.device) -> int:
    """Bytes that autograd may store for one chunk."""
    if device.type != "cuda":
        return MEMORY_BUDGET
    return max(MEMORY_BUDGET, int(FREE_SHARE * torch.cuda.mem_get_info(device)[0]))


def why_not_vectorised(
    environments: Environments, objective: Objective, losses: Objective, inputs: Sequence[Tensor]
) -> str | None:
    """What goes wrong with two environments at once that goes well with each of them; None if nothing does."""
    two = next(environments.chunks(2))
    device = two.support[0].device
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        try:
            together = _values_and_gradients(two, objective, losses, inputs)
        except Exception as error:
            for one in two.chunks(1):
                objective(one)  # what is wrong with a single environment as well is raised here
            return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        if device.type != "cpu" or not torch.equal(before, torch.get_rng_state()):
            return None  # random numbers: the two ways need not agree
        apart = [_values_and_gradients(one, objective, losses, inputs) for one in two.chunks(1)]
    if together.losses.shape != (2,):
        raise ValueError(
            f"environment_losses returned shape {tuple(together.losses.shape)} for 2 environments; it must return one "
            "loss per environment: take the mean over examples, not over environments."
        )
    kind = device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else together.losses.dtype
    tolerance = 10 * torch.finfo(dtype).eps ** 0.5
    if not _close(together.losses, torch.cat([one.losses for one in apart]), tolerance):
        return "it gives other numbers under vmap"
    if together.values.shape != (2,):
        return None  # no objective for each environment
    if not _close(together.values, torch.cat([one.values for one in apart]), tolerance):
        if not _close(together.values, objective(two).detach(), tolerance):
            return None  # numbers of another kind of chance: the two ways need not agree
        first = next(two.chunks(1))
        twice = objective(first.map(lambda tensor: torch.cat([tensor, tensor]))).detach()
        if not _close(together.values[:1], twice[:1], tolerance):
            raise ValueError(
                "The objective of an environment depends on those that are computed with it: "
                f"{float(together.values[0]):.6g} beside the second of the batch, {float(twice[0]):.6g} beside itself. "
                "Let environment_objectives give each environment a number of its own, without a mean or maximum over "
                "environments; or declare couples_environments = True and compute all at once, as REx does."
            )
        return "it gives other numbers under vmap"
    gradients = [sum(each) for each in zip(*(one.gradients for one in apart), strict=True)]
    if not _agree(together.gradients, gradients, tolerance):
        return "it gives other gradients under vmap"
    return None


def _close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


class _Tried(NamedTuple):
    losses: Tensor
    values: Tensor
    gradients: list[Tensor]


def _values_and_gradients(
    environments: Environments, objective: Objective, losses: Objective, inputs: Sequence[Tensor]
) -> _Tried:
    values, gradients = objective(environments), [torch.zeros_like(each) for each in inputs]
    if values.requires_grad and inputs:
        found = torch.autograd.grad(values.sum(), list(inputs), materialize_grads=True)
        gradients = [each.to_dense() if each.is_sparse else each for each in found]
    return _Tried(losses(environments).detach(), values.detach(), gradients)


def _agree(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float) -> bool:
    """Whether gradients are the same up to rounding: each tensor by itself, however small its share of the whole."""
    norms = torch.stack([each.norm() for each in right]) if right else torch.zeros(1)
    floor = 1e-3 * norms.norm()
    return all(
        bool((a - b).norm() <= tolerance * norm.maximum(floor)) or not bool(norm.isfinite())
        for a, b, norm in zip(left, right, norms, strict=True)
    )


def stored_bytes(function: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes of the tensors that autograd saves while ``function`` runs, random numbers left untouched."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        function()
    return sum(storages.values())
