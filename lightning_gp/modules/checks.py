"""What is refused before training starts, each with the way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp.environments import Environments, examples_of
from lightning_gp.networks.parts import running_statistics


def check_network(network: nn.Module) -> None:
    """Refuses networks that keep running statistics or cannot be trained.

    Raises:
        TypeError: if ``network`` is not a module.
        ValueError: if it has no trainable parameter, or normalisation layers with running statistics.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has no parameter that requires a gradient; there is nothing to train."
        )
    layers = running_statistics(network)
    if layers:
        raise ValueError(
            f"{type(network).__name__} keeps running statistics in {', '.join(layers)}: shared by all "
            "environments, they would make every number depend on the order of the inner loops. Build these with "
            "track_running_stats=False, or call lightning_gp.networks.use_batch_statistics(network) first."
        )


def check_callables(**values: Any) -> None:
    """Refuses what is no function where one is needed.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if not callable(value):
            raise TypeError(
                f"{name}={value!r} is of type {type(value).__name__}; give a function, such as "
                "torch.nn.functional.mse_loss for criterion, or for optimizer torch.optim.Adam or "
                "lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )


def check_steps(name: str, steps: int) -> None:
    """Refuses fewer than one inner step.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"{name}={steps!r} must be a whole number of at least 1; use ERM to train without an inner loop."
        )


def check_predictions(predictions: Tensor, targets: Tensor, criterion: Any, ways: int | None) -> None:
    """Refuses a network whose output does not fit the targets of the built-in losses.

    Args:
        predictions: network output for one environment, (K, ...).
        targets: (K, ...).
        criterion: the loss function; only those of torch are judged.
        ways: number of classes of the data module, or None.

    Raises:
        ValueError: naming the shapes; broadcasting would otherwise turn them into a silent wrong number.
    """
    if criterion is F.cross_entropy or isinstance(criterion, nn.CrossEntropyLoss):
        if targets.is_floating_point():
            return
        classes = predictions.shape[1] if predictions.ndim > 1 else 1
        largest = int(targets.max())
        if largest >= classes or (ways is not None and classes != ways):
            wanted = f"{ways} ways" if ways is not None else f"labels up to {largest}"
            raise ValueError(
                f"The network has {classes} outputs but the data has {wanted}. Build the network with "
                f"{ways if ways is not None else largest + 1} outputs (for example Conv4(ways=...)), or change the "
                "data module's `ways`."
            )
    elementwise = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits)
    modules = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.BCEWithLogitsLoss)
    if (criterion in elementwise or isinstance(criterion, modules)) and predictions.shape != targets.shape:
        raise ValueError(
            f"The network's output has shape {tuple(predictions.shape)} but the targets have {tuple(targets.shape)}; "
            "they must be equal, or the loss would broadcast them against each other."
        )


def check_batch(module: Any, environments: Environments) -> None:
    """Runs the network once on one environment and compares its output with the targets.

    Raises:
        ValueError: see ``check_predictions``.
    """
    x, y = examples_of(environments, "support")
    trainer = module._trainer
    ways = getattr(getattr(trainer, "datamodule", None), "ways", None)
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        predictions = module.predict(dict(module.network.named_parameters()), x[0])
    if isinstance(predictions, Tensor):
        check_predictions(predictions, y[0], module.criterion, ways)


def check_trainer(module: Any, second_order: bool) -> None:
    """Refuses the strategies and precisions under which second-order gradients break or silently underflow.

    Also refused: data modules that give each device a share of every environment, to modules that would take it for a
    whole one, and modules inside ``torch.compile`` that compute gradients as a part of their training step.

    Raises:
        ValueError: naming the setting and what to use instead.
    """
    trainer = module._trainer
    if trainer is None:
        return
    data = type(getattr(trainer, "datamodule", None))
    if getattr(trainer, "world_size", 1) > 1 and hasattr(data, "environment_names") and not _knows_shares(module):
        raise ValueError(
            f"{data.__name__} gives each of the {trainer.world_size} devices a share of every environment, which "
            f"{type(module).__name__} would take for a whole one. Use one device, an episodic data module, or a "
            "module with devices_share (ERM, IRMv1, REx, GradientPenalty)."
        )
    if getattr(module, "_compiler_ctx", None) is not None and (second_order or hasattr(module, "compile_step")):
        raise ValueError(
            f"torch.compile cannot compile the training step of {type(module).__name__}, which computes gradients "
            "itself. Give the Trainer the module as it is; MAML, FOMAML, ANIL and BOIL have compile=True."
        )
    if not second_order:
        return
    strategy = type(trainer.strategy).__name__
    if any(name in strategy for name in ("FSDP", "DeepSpeed", "ModelParallel")):
        raise ValueError(
            f"{strategy} shards parameters, and gradients of gradients through shards are broken in torch. Use "
            "strategy='ddp', or a first-order algorithm (first_order=True)."
        )
    if str(trainer.precision) == "16-mixed":
        raise ValueError(
            "precision='16-mixed' scales the outer loss only; inner gradients underflow unnoticed. Use 'bf16-mixed' or "
            "'32-true', or a first-order algorithm (first_order=True)."
        )


def _knows_shares(module: Any) -> bool:
    return hasattr(module, "devices_share")
