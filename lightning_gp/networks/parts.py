"""Which parameters the inner loop may change, and which networks it can be trusted with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lightning_gp.types import ParameterChoice


def select_parameters(network: nn.Module, choice: ParameterChoice = "all") -> list[str]:
    """Names of the trainable parameters that ``choice`` picks.

    ``"head"`` is the submodule of that name; ``"body"`` is everything else. A prefix picks a submodule or a parameter.

    Args:
        network: any module.
        choice: see above.

    Raises:
        TypeError: if ``choice`` is neither of them.
        ValueError: if nothing is picked, naming what there is to choose from.

    Example:
        >>> select_parameters(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), ["1"])
        ['1.weight', '1.bias']
    """
    if not callable(choice) and not isinstance(choice, (str, Sequence)):
        raise TypeError(f"adapt={choice!r} must be 'all', 'head', 'body', a list of name prefixes, or a predicate.")
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    children = [name for name, _ in network.named_children()]
    if isinstance(choice, str) and choice in ("head", "body") and "head" not in children:
        raise ValueError(
            f"adapt={choice!r} needs a network with a submodule named 'head'; {type(network).__name__} has {children}. "
            "Rename its last layer, or pass a list of name prefixes or a predicate on parameter names."
        )
    if not callable(choice) and not isinstance(choice, str):
        every = [name for name, _ in network.named_parameters()]
        unknown = [prefix for prefix in choice if not any(_within(name, prefix) for name in every)]
        if unknown:
            raise ValueError(f"adapt={choice!r} names {unknown}, which begin no parameter's name; there are {every}.")
    picked = [name for name in names if _predicate(choice, children)(name)]
    if not picked:
        raise ValueError(
            f"adapt={choice!r} picks none of the trainable parameters of {type(network).__name__}; there are {names}. "
            "Allowed: 'all', 'head', 'body', a list of name prefixes, or a predicate on parameter names."
        )
    return picked


def _predicate(choice: ParameterChoice, children: list[str]) -> Callable[[str], bool]:
    if callable(choice):
        return choice
    if choice == "all":
        return lambda name: True
    if choice == "body":
        return lambda name: not _within(name, "head")
    prefixes = [choice] if isinstance(choice, str) else list(choice)
    return lambda name: any(_within(name, prefix) for prefix in prefixes)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def named_submodule(network: nn.Module, name: str) -> nn.Module:
    """The layer of that name.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if not name or name not in layers:
        raise ValueError(
            f"head={name!r} names no layer of {type(network).__name__}; there are {[each for each in layers if each]}."
        )
    return layers[name]


def running_statistics(network: nn.Module) -> list[str]:
    """Names of the normalisation layers that keep running statistics."""
    return [
        name or type(layer).__name__
        for name, layer in network.named_modules()
        if getattr(layer, "running_mean", None) is not None and getattr(layer, "track_running_stats", False)
    ]


def use_batch_statistics(network: nn.Module) -> nn.Module:
    """Drops the running statistics of every normalisation layer, in place, and returns the network.

    One set of running statistics cannot serve many environments: every inner step would overwrite it. With batch
    statistics, predictions depend on the other examples of the batch, as in C. Finn et al., 2017.

    Raises:
        TypeError: if ``network`` is no module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    for layer in network.modules():
        if getattr(layer, "running_mean", None) is not None and hasattr(layer, "track_running_stats"):
            setattr(layer, "track_running_stats", False)  # noqa: B010  (any normalisation layer, of whatever class)
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(layer, buffer, None)
    return network
