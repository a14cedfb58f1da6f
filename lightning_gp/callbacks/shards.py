"""Gradients where every process holds a part of each parameter: FSDP2, ``torch.distributed.fsdp.fully_shard``.

``torch.autograd.grad`` gives None there: a layer is differentiated by copies of its whole parameters, which it makes
for the while. ``.backward()`` leaves in ``.grad`` this process's part of the gradient, averaged over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gp.functional.gradients import cosine_similarity, dense, gradient_norm, inner_product, pairwise_cosines
from lightning_gp.functional.processes import processes, sum_over_processes
from lightning_gp.types import Parameters

DTENSOR: tuple[Any, ...] = ()
FSDP_MODULE: tuple[Any, ...] = ()
try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    DTENSOR, FSDP_MODULE = (DTensor,), (FSDPModule,)
except ImportError:  # torch < 2.6, or built without torch.distributed
    pass

DIVIDED_BY = ("gradient_divide_factor", "reduce_scatter_reduce_op")
"""What users can set in place of the mean over processes, in newer and older torch."""


class Parts(dict[str, Tensor]):
    """A stack of gradients of which tensors (E, *part) are this process's parts, see ``part``."""


def sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether of any of these every process holds a part."""
    return any(isinstance(tensor, DTENSOR) for tensor in tensors)


def spread(module: nn.Module) -> bool:
    """Whether the parameters of a module are sharded, be they gathered at the moment."""
    return bool(_layers(module))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    if not isinstance(tensor, DTENSOR):
        return tensor
    with torch.no_grad():  # the very tensor, not a view with a history
        own: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return own


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, over √n if n processes hold the same: squares add up over processes."""
    held: Any = tensor
    several = 1
    if isinstance(tensor, DTENSOR):
        several = math.prod(held.device_mesh.size(i) for i, each in enumerate(held.placements) if each.is_shard())
    own, same = dense(local(tensor)), processes() // several
    return own if same == 1 else own / math.sqrt(same)


def as_stack(gradients: Mapping[str, Tensor]) -> Parameters:
    """Gradients as a stack (1, *shape), of parts where they are sharded."""
    if sharded(gradients.values()):
        return Parts({name: part(gradient).unsqueeze(0) for name, gradient in gradients.items()})
    return {name: dense(gradient).unsqueeze(0) for name, gradient in gradients.items()}


def reshard(module: nn.Module) -> None:
    """Takes back the whole parameters that FSDP2 keeps after a forward pass; it gathers them anew for the next."""
    for each in _layers(module):
        each.reshard()


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients_of_shards(
    losses: Callable[[], Tensor], parameters: Parameters, module: nn.Module, weight: Callable[[], float | None]
) -> Parts:
    """∇L_τ(θ) of the environments of all processes, in their order; every process has to call it.

    One forward pass, and a backward pass for each environment in which it alone has a loss.

    Args:
        losses: gives the losses (E,) of this process's environments, at the parameters.
        parameters: θ, sharded; ``.grad`` is left as it is.
        module: whose layers are sharded.
        weight: asked after ``losses``: None, or the weight of this process's one loss in the sum over processes whose
            gradient is wanted in place of those of environments.
    """
    rows: list[list[Tensor]] = []
    reshard(module)
    with torch.inference_mode(False), torch.enable_grad(), _set_aside(module, parameters):
        values = losses()
        seeds = list(_seeds(values, weight()))
        for i, seed in enumerate(seeds, start=1):
            for parameter in parameters.values():
                parameter.grad = None
            torch.autograd.backward(values, seed, retain_graph=i < len(seeds))
            rows.append([_summed(each) for each in parameters.values()])
    columns = zip(*rows, strict=True)
    return Parts({name: torch.stack(column) for name, column in zip(parameters, columns, strict=True)})


def _seeds(values: Tensor, weight: float | None) -> Iterator[Tensor]:
    """With what weights the losses enter into each backward pass."""
    if weight is not None:
        yield torch.full_like(values, weight)
        return
    rank = torch.distributed.get_rank()
    counts = torch.zeros(processes(), device=values.device)
    counts[rank] = len(values)
    for process, count in enumerate(sum_over_processes(counts).int().tolist()):
        for i in range(count):
            seed = torch.zeros_like(values)
            if process == rank:
                seed[i] = 1
            yield seed


def _summed(parameter: Tensor) -> Tensor:
    """The part of the sum over processes of their gradients, of which FSDP has made the mean."""
    held: Any = parameter
    if not isinstance(parameter, DTENSOR):
        own = torch.zeros_like(parameter) if parameter.grad is None else dense(parameter.grad)
        return part(sum_over_processes(own))
    if parameter.grad is None:
        return torch.zeros_like(part(parameter))
    return part(parameter.grad) * float(held.device_mesh.size())


@contextmanager
def _set_aside(module: nn.Module, parameters: Parameters) -> Iterator[None]:
    """Gradients of training, those included that FSDP has not yet summed, and how it sums: meanwhile, to the mean."""
    aside: list[tuple[Any, str, Any]] = [
        (each, "grad", None) for each in {*module.parameters(), *parameters.values()} if each.is_leaf
    ]
    for group in _groups(module):
        aside += [(group, "reduce_grads", True), (group, "all_reduce_grads", True)]
        aside += [(group, name, None) for name in ("_partial_reduce_output", *DIVIDED_BY)]
        for each in group.fsdp_params:
            aside.append((each, "unsharded_accumulated_grad", None))
            aside.append((getattr(each, "_unsharded_param", None), "grad", None))
    aside = [each for each in aside if hasattr(each[0], each[1])]  # not every torch has all of them
    kept = [(thing, name, getattr(thing, name)) for thing, name, _ in aside]
    try:
        for thing, name, value in aside:
            setattr(thing, name, value)
        yield
    finally:
        reshard(module)
        for thing, name, value in kept:
            setattr(thing, name, value)


def _layers(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if isinstance(each, FSDP_MODULE)]


def _groups(module: nn.Module) -> list[Any]:
    """FSDP's own groups of parameters: of a layer one, or in newer torch several."""
    states = [each._get_fsdp_state() for each in _layers(module)]
    groups = [getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group] for state in states]
    return [group for each in groups for group in each if group is not None]


# -- statistics of whole gradients ------------------------------------------------------------------------------------


def joined(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norms of tensors from those of their parts, of all keys at once."""
    own = torch.stack(list(norms.values()))
    return dict(zip(norms, sum_over_processes(own.double().square()).sqrt().to(own.dtype), strict=True))


def inner_products(a: Parameters, b: Parameters) -> Tensor:
    """``functional.inner_product``, of parts too."""
    own = inner_product(a, b)
    return sum_over_processes(own) if isinstance(a, Parts) else own


def cosines(a: Parameters, b: Parameters) -> Tensor:
    """``functional.cosine_similarity``, of parts too."""
    own = cosine_similarity(a, b)
    return _weighted(own, _share(a), _share(b)) if isinstance(a, Parts) else own


def cosines_between(stack: Parameters) -> Tensor:
    """``functional.pairwise_cosines``, of parts too."""
    own = pairwise_cosines(stack)
    return _weighted(own, _share(stack).unsqueeze(1), _share(stack)) if isinstance(stack, Parts) else own


def _share(parts: Parameters) -> Tensor:
    """The norm of a part over that of the whole, which is NaN if that is 0."""
    own = gradient_norm(parts)
    return own / joined({"": own})[""]


def _weighted(cosines: Tensor, left: Tensor, right: Tensor) -> Tensor:
    weights = left * right
    return sum_over_processes(torch.where(weights == 0, 0, cosines * weights)).clamp(-1, 1)
