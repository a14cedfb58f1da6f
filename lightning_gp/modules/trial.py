"""The trial run: what network and loss do with the first batch decides whether they can be trusted with the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.contracts import Classifies
from lightning_gp.environments import Environments
from lightning_gp.modules.collation import check_collation, loaders_of
from lightning_gp.modules.misfits import naming_misfits
from lightning_gp.types import Criterion, Parameters


class Trainable(Protocol):
    """What the trial run needs of a module."""

    network: nn.Module
    criterion: Criterion

    def network_parameters(self) -> Parameters: ...  # noqa: D102
    def predict(self, parameters: Parameters, x: Tensor) -> Tensor: ...  # noqa: D102
    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor: ...  # noqa: D102


class Trained(Trainable, Protocol):
    """What the trial run needs of a module that may be in the hands of a Trainer."""

    training: bool
    redraws: bool
    _trainer: Any

    @property
    def has_own_loss(self) -> bool: ...  # noqa: D102


def try_batch(module: Trained, batches: Sequence[Environments], data: Any) -> None:
    """Tries out a module on its first batch, and asks how the loader made it.

    Args:
        module: in training or evaluation.
        batches: of environments.
        data: the data module, if there is one.

    Raises:
        TypeError: see ``try_out``.
        ValueError: see ``try_out`` and ``check_collation``; if the loss is random and ``redraws``.
    """
    ways = data.ways if isinstance(data, Classifies) else None
    drew = try_out(module, batches[0], module.has_own_loss, ways)
    if drew and module.redraws and module.training:
        raise ValueError(
            f"The loss of {type(module.network).__name__} draws random numbers (dropout, noise), and recompute=True "
            "computes each inner step again with others: the gradient would be wrong. Leave recompute False, or "
            "take the randomness out (dropout probability 0)."
        )
    if module._trainer is not None:
        check_collation(module, batches[0], loaders_of(module._trainer))


def try_out(module: Trainable, environments: Environments, own_loss: bool, ways: int | None = None) -> bool:
    """Computes the loss of one environment, without a trace, and refuses what could not be trained right.

    Args:
        module: as it is; its random numbers, buffers and gradients are what they were afterwards.
        environments: a batch.
        own_loss: whether the module's ``loss`` is its own, and not its criterion of the outputs.
        ways: number of classes of the data module, if it says so.

    Returns:
        Whether the loss draws random numbers.

    Raises:
        TypeError: if the network gives no tensor.
        ValueError: if inputs and parameters are of two precisions, the loss is no scalar or does not depend on the
            outputs, or these do not fit the targets; if a buffer or a parameter of the network changes.
    """
    drew = False
    parameters = {name: value.detach().requires_grad_() for name, value in module.network_parameters().items()}
    for x, y in (split for split in environments if split is not None):
        device = [x.device] if x.is_cuda else []
        buffers = {name: buffer.clone() for name, buffer in module.network.named_buffers()}
        weights = {name: value.detach().clone() for name, value in module.network.named_parameters()}
        with torch.random.fork_rng(devices=device), torch.inference_mode(False), torch.enable_grad():
            try:
                drew |= _check_loss(module, parameters, x[0].clone(), y[0].clone(), own_loss, ways)
            finally:
                changed = _put_back(module.network.named_buffers(), buffers)
                written = _put_back(module.network.named_parameters(), weights)
        if written:
            raise ValueError(
                f"{type(module.network).__name__} changes its parameters {', '.join(written)} when it runs, in place: "
                "all environments share them, and the inner loop would not see it. Compute what it needs from them "
                "instead (as torch.nn.functional.normalize(weight) does)."
            )
        if changed:
            raise ValueError(
                f"{type(module.network).__name__} changes its buffers {', '.join(changed)} when it runs (running "
                "statistics, power iterations, counters): shared by all environments, they would make every number "
                "depend on the order of the inner loops. Take that layer out or freeze it (eval mode), or build "
                "normalisation with track_running_stats=False."
            )
    return drew


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _put_back(present: Iterable[tuple[str, Tensor]], before: Mapping[str, Tensor]) -> list[str]:
    """Restores tensors, and names those that had changed."""
    changed = []
    with torch.no_grad():
        for name, value in present:
            former = before.get(name)
            if former is None or former.shape != value.shape or not _equal(former, value):
                changed.append(name)
                if former is not None and former.shape == value.shape:
                    value.copy_(former)
    return changed


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right) or (left.is_floating_point() and torch.allclose(left, right, 0, 0, equal_nan=True))


def _check_loss(
    module: Trainable, parameters: Parameters, x: Tensor, y: Tensor, own_loss: bool, ways: int | None
) -> bool:
    before = _random_state(x.device)
    with torch.no_grad(), naming_misfits(module.network, parameters, x):  # a graph would be kept beside the loss's
        outputs = module.predict(parameters, x)
    if not own_loss:
        check_classes(outputs, y, module.criterion, ways)
    with torch.set_grad_enabled(own_loss):
        loss = module.loss(parameters, x, y)
    drew = not all(map(torch.equal, before, _random_state(x.device)))
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"The loss of one environment is {got}; it must be a scalar: take the mean over examples "
            "(reduction='mean')."
        )
    if own_loss:
        inputs = list(parameters.values())
        constant = _constant(loss, inputs) and _constant(module.loss(_shaken(parameters), x, y), None)
    else:
        shaken = [outputs.detach(), outputs.detach() + torch.randn_like(outputs)]
        leaves = [each.requires_grad_() for each in shaken]
        constant = all(_constant(module.criterion(leaf, y), [leaf]) for leaf in leaves)
    if constant:
        raise ValueError(
            "The loss does not depend on the network's outputs: its gradient is exactly 0, so nothing would train. The "
            f"criterion {_name(module.criterion)} got outputs {tuple(outputs.shape)} and targets {tuple(y.shape)} of "
            f"{y.dtype}. For regression give criterion=torch.nn.functional.mse_loss; for classes the network needs "
            "one output per class."
        )
    return drew


def _shaken(parameters: Parameters) -> Parameters:
    return {
        name: (value.detach() + 0.1 * torch.randn_like(value)).requires_grad_() for name, value in parameters.items()
    }


def _constant(loss: Tensor, inputs: list[Tensor] | None) -> bool:
    """Whether the gradient is exactly 0; of a loss without a graph it is."""
    if not loss.requires_grad:
        return True
    if inputs is None:
        return False
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return not any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)


def check_classes(outputs: Tensor, targets: Tensor, criterion: Any, ways: int | None) -> None:
    """Refuses a classifier whose number of outputs is not that of the classes.

    Args:
        outputs: of one environment, (K, C, ...).
        targets: (K, ...).
        criterion: the loss function; only the cross-entropy is judged.
        ways: number of classes of the data module, or None.

    Raises:
        ValueError: naming both numbers.
    """
    entropy = criterion is F.cross_entropy or isinstance(criterion, nn.CrossEntropyLoss)
    if not entropy or targets.is_floating_point():
        return
    classes = outputs.shape[1] if outputs.ndim > 1 else 1
    largest = int(targets.max())
    if largest >= classes or (ways is not None and classes != ways):
        wanted = f"{ways} ways" if ways is not None else f"labels up to {largest}"
        raise ValueError(
            f"The network has {classes} outputs but the data has {wanted}. Build the network with "
            f"{ways if ways is not None else largest + 1} outputs (for example Conv4(ways=...)), or change the "
            "data module's `ways`."
        )


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
