"""Networks that are chains of layers known to treat each example on its own, found by the exact types of parts."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.networks.sinusoid import SinusoidMLP

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Identity)
BODY_AND_HEAD = (SinusoidMLP, ColoredMNISTMLP)
"""Networks that compute ``head(body(x))``."""

Chain: TypeAlias = list[tuple[str, nn.Module]]
"""Layers by name, each applied to the outputs of the one before."""


def chain_of(network: nn.Module) -> Chain | None:
    """The layers of a network that is a chain of known ones; None for any other.

    Known are linear layers, layer normalisation over the last axis, functions of single numbers, and flattening;
    ``nn.Sequential`` of them and the package's own networks. A subclass is not, nor what has hooks, is compiled, or
    whose ``forward`` was replaced.

    Args:
        network: any module.

    Example:
        >>> [name for name, _ in chain_of(nn.Sequential(nn.Linear(1, 2), nn.Tanh()))]
        ['0', '1']
        >>> chain_of(nn.Sequential(nn.Linear(1, 2), nn.Dropout()))
    """
    return None if _has_any_global_hook() else _chain(network, "")


def _chain(part: nn.Module, name: str) -> Chain | None:
    if not _plain(part):
        return None
    if type(part) is nn.Sequential:
        # A layer that stands in two places is there twice.
        children: list[tuple[str, nn.Module | None]] = list(part._modules.items())
    elif type(part) in BODY_AND_HEAD:
        children = [(each, part._modules[each]) for each in ("body", "head")]
    else:
        return [(name, part)] if _known(part) else None
    chain: Chain = []
    for child, layer in children:
        inner = None if layer is None else _chain(layer, f"{name}.{child}" if name else child)
        if inner is None:
            return None
        chain += inner
    return chain


def _known(layer: nn.Module) -> bool:
    if type(layer) is nn.Flatten:
        return layer.start_dim >= 1
    if type(layer) is nn.LayerNorm:
        return len(layer.normalized_shape) == 1
    return type(layer) is nn.Linear or type(layer) in ELEMENTWISE


def _plain(layer: nn.Module) -> bool:
    own = vars(layer)
    hooked = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not hooked and "forward" not in own and own.get("_compiled_call_impl") is None
