"""Networks that start from another run's checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "network."
"""What every module of this package calls its network."""


def load_pretrained(network: nn.Module, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """``network`` with the weights that a module of this package has saved, for a run of its own.

    In a config, it stands where the network stands::

        model:
          class_path: lightning_gp.FOMAML
          init_args:
            network:
              class_path: lightning_gp.networks.load_pretrained
              init_args:
                checkpoint: runs/pretraining/last.ckpt
                network: {class_path: lightning_gp.networks.Conv4, init_args: {ways: 5}}

    Args:
        network: of the architecture that was saved; changed in place.
        checkpoint: of a Trainer, or a state dict saved with ``torch.save``.

    Returns:
        ``network``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no network, or another one; the message names what differs.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path.absolute()}; give the path of a .ckpt file.")
    state = _state(path)
    own = network.state_dict()
    differences = weight_differences(own, state)
    if differences:
        raise ValueError(
            f"{path} holds another network than this {type(network).__name__}: {differences}. Build the network with "
            "the arguments (ways, channels, ...) of the run that saved it."
        )
    network.load_state_dict(state)
    return network


def weight_differences(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Up to three differences of names and shapes, in words; empty if there are none.

    Args:
        own: a state dict.
        saved: that of a checkpoint.

    Example:
        >>> weight_differences({"w": torch.zeros(2)}, {"w": torch.zeros(3), "b": torch.zeros(1)})
        'b is only in the checkpoint; w is (3,) in the checkpoint but (2,) here'
    """
    differences = [f"{name} is missing in the checkpoint" for name in own.keys() - saved.keys()]
    differences += [f"{name} is only in the checkpoint" for name in saved.keys() - own.keys()]
    differences += [
        f"{name} is {tuple(saved[name].shape)} in the checkpoint but {tuple(own[name].shape)} here"
        for name in own.keys() & saved.keys()
        if own[name].shape != saved[name].shape
    ]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(sorted(differences)[:3]) + more


def _state(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of weights: {error}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    networks = {name[len(PREFIX) :]: value for name, value in state.items() if name.startswith(PREFIX)}
    if not (networks or state):
        raise ValueError(f"{path} holds no weights; give a checkpoint of the Trainer or a saved state dict.")
    return networks or state
