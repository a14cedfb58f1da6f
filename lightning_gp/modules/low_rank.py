"""When a module's inner loop is computed in the low-rank form: where that is known, and found, to give the same.

Known is a network that is a chain (``functional.chains``) under the module's own ``predict``, ``loss`` and
``adaptation``, adapted by gradient descent, in single or double precision. Found is it on two environments of the first
batch: losses and gradients of both ways have to agree. Anything else is computed by ``functional.adapt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.chains import Chain, chain_of
from lightning_gp.functional.inner_loop import run
from lightning_gp.functional.low_rank import adapted_losses
from lightning_gp.loops import InnerLoop
from lightning_gp.modules.objective import EnvironmentObjective
from lightning_gp.modules.outputs import ELEMENTWISE, check_shapes
from lightning_gp.types import Criterion, Parameters, Rates

TRIAL_RATE = 0.05
"""The largest inner rate of the trial, which must not depend on whether the user's makes numbers overflow."""


class Adapting(Protocol):
    """What is asked of a module."""

    network: nn.Module
    criterion: Criterion
    _low_rank: bool | None

    def inner_loop(self) -> InnerLoop: ...  # noqa: D102
    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor: ...  # noqa: D102


def low_rank_losses(
    module: Adapting, known: type[EnvironmentObjective], parameters: Parameters, environments: Environments
) -> Tensor | None:
    """L_τ^te(θ_S) of each environment in the low-rank form, (E,); None where ``adaptation`` has to be run.

    Args:
        module: whose ``_low_rank`` remembers how the trial went.
        known: the class of which it may be a subclass that changes no method that the form takes the place of.
        parameters: θ_0, (*shape).
        environments: of one size.
    """
    if module._low_rank is False:
        return None
    loop = module.inner_loop()
    chain = _chain(module, known, loop, parameters, environments)
    if chain is None:
        return None
    if module._low_rank is None:
        module._low_rank = _agrees(module, chain, loop, parameters, next(environments.chunks(2)))
    return _computed(module, chain, loop, parameters, environments) if module._low_rank else None


def _computed(
    module: Adapting, chain: Chain, loop: InnerLoop, parameters: Parameters, environments: Environments
) -> Tensor:
    return adapted_losses(
        chain,
        parameters,
        environments.support,
        environments.split("query"),
        lambda outputs, y: losses_of(module.criterion, outputs, y),
        cast(Rates, loop.signed_rates),
        loop.steps,
        first_order=loop.first_order,
        adapted=loop.adapted,
    )


def losses_of(criterion: Criterion, outputs: Tensor, y: Tensor) -> Tensor:
    """The criterion in each environment, from outputs (E, K, ...) and targets (E, K, ...) to (E,)."""
    if outputs.shape == y.shape and (function := _elementwise(criterion)) is not None:
        each: Tensor = function(outputs, y, reduction="none")
        return each.flatten(1).mean(1)
    if outputs.shape != y.shape:
        check_shapes(outputs[0], y[0], criterion)
    losses: Tensor = over_environments(lambda _, own, targets: criterion(own, targets), {}, {}, outputs, y)
    return losses


def _elementwise(criterion: Any) -> Any:
    """The function behind a mean of torch over elements."""
    if type(criterion) is nn.MSELoss and criterion.reduction == "mean":
        return F.mse_loss
    return criterion if criterion in ELEMENTWISE else None


def _chain(
    module: Adapting,
    known: type[EnvironmentObjective],
    loop: InnerLoop,
    parameters: Parameters,
    environments: Environments,
) -> Chain | None:
    """The network as a chain, if the loop is the module's own and nothing about it is special."""
    special = (
        loop.optimizer is not None
        or loop.normalize
        or loop.proximal
        or isinstance(loop.rates, tuple)
        or loop.loss != module.loss
        or not _own_methods(module, known)
        or not all(map(_plain, parameters.values()))
        or any(x.ndim < 3 for x in environments.tensors()[::2])
        or torch.is_autocast_enabled(environments.support[0].device.type)
    )
    chain = None if special else chain_of(module.network)
    if chain is None:
        return None
    names = {f"{name}.{own}" if name else own for name, layer in chain for own in _named(layer)}
    moving = names if loop.adapted is None else names.intersection(loop.adapted)
    return chain if moving and names == parameters.keys() else None  # tied weights have one name for two layers


def _own_methods(module: Adapting, known: type[EnvironmentObjective]) -> bool:
    """Whether what the low-rank form takes the place of is what this package made it."""
    kinds = {**dict.fromkeys(("predict", "loss", "risk"), EnvironmentObjective), "adaptation": known}
    return all(getattr(getattr(module, name), "__func__", None) is vars(kind)[name] for name, kind in kinds.items())


def _named(layer: nn.Module) -> list[str]:
    return [name for name, value in layer._parameters.items() if value is not None]


def _plain(value: Tensor) -> bool:
    """Whether it is an ordinary tensor of single or double precision, no shard and not inside ``torch.func``."""
    known = type(value) in (Tensor, nn.Parameter) and value.dtype in (torch.float32, torch.float64)
    return known and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _agrees(module: Adapting, chain: Chain, loop: InnerLoop, parameters: Parameters, few: Environments) -> bool:
    """Whether both ways give the same losses and gradients, for up to two inner steps at small rates."""
    loop = replace(loop, steps=min(loop.steps, 2), rates=_small(cast(Rates, loop.rates)))
    device = few.support[0].device
    with torch.inference_mode(False), torch.random.fork_rng([device] if device.type == "cuda" else []):
        few = few.map(torch.clone)
        leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        before = torch.get_rng_state()
        with torch.enable_grad():
            path = run(loop, leaves, few.support)
            expected = over_environments(module.loss, path.parameters[-1], path.shared, *few.split("query"))
            if not torch.equal(before, torch.get_rng_state()):
                return False  # random numbers: the two ways need not agree
            try:
                found = _computed(module, chain, loop, leaves, few)
            except Exception:  # whatever the reason: what is wrong with the batch itself was raised above
                return False
        return all(_same(*pair) for pair in zip(*(_derived(each, leaves) for each in (found, expected)), strict=True))


def _derived(losses: Tensor, leaves: Parameters) -> list[Tensor]:
    gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return [losses.detach(), torch.cat([gradient.flatten() for gradient in gradients])]


def _same(found: Tensor, expected: Tensor) -> bool:
    tolerance = 10 * torch.finfo(expected.dtype).eps ** 0.5
    return found.shape == expected.shape and bool((found - expected).norm() <= tolerance * expected.norm())


def _small(rates: Rates) -> Rates:
    """The same rates, scaled to a largest one of ``TRIAL_RATE``."""
    own = dict(rates) if isinstance(rates, Mapping) else {"": rates}
    values = {name: rate.detach() if isinstance(rate, Tensor) else rate for name, rate in own.items()}
    largest = max(float(torch.as_tensor(rate).abs().max()) for rate in values.values())
    small = {name: rate * (TRIAL_RATE / largest) if largest > 0 else TRIAL_RATE for name, rate in values.items()}
    return small if isinstance(rates, Mapping) else small[""]
