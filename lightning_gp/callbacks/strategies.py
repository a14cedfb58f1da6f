"""Under which of Lightning's strategies a callback works where no process has whole parameters."""

from __future__ import annotations

from lightning_gp.callbacks.shards import FSDP_MODULE

WORKING = (
    "GradientNorm, CosineSimilarity, GradientNoise, UpdateStatistics, CriticalLearningRate, the outer path of "
    "PhaseAmplitudeConsistency and HessianEigenvalues(products='differences'), in training"
)
FSDP2 = (
    "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) with torch.distributed.fsdp.fully_shard in "
    f"configure_model (FSDP2, torch >= 2.6): under it work {WORKING}"
)
REASONS = {
    "DeepSpeed": "DeepSpeed keeps parts of gradients in its own engine, where another backward pass would enter into "
    "the next step of training",
    "XLA": "it has not been tried where XLA compiles the graphs",
    "FSDP": "FSDP1 joins the parameters of several layers into one vector, of which each process holds a part, so that "
    "no parameter has a gradient of its own",
}


def check_strategy(strategy: object, owner: str, works: bool, by_environment: bool = False) -> None:
    """Refuses strategies under which a callback cannot work.

    Args:
        strategy: of the Trainer, set up.
        owner: name of the callback.
        works: whether it works under FSDP2.
        by_environment: whether it calls ``environment_losses`` of the module.

    Raises:
        ValueError: naming the reason, and what to use.
    """
    kinds = " ".join(kind.__name__ for kind in type(strategy).__mro__)
    name = type(strategy).__name__
    if "ModelParallel" in kinds:
        if not works or not FSDP_MODULE:
            raise ValueError(
                f"{owner} works on whole parameters only, but under {name} (FSDP2) every process holds a part of each, "
                "and torch.autograd.grad, of which second derivatives are made, gives None. Use strategy='ddp' or a "
                f"single device. Under FSDP2, with torch >= 2.6, work {WORKING}."
            )
        if by_environment:
            raise ValueError(
                f"{owner} calls environment_losses(parameters, ...), but under {name} (FSDP2) layers compute with "
                "copies of their own in place of parameters that are passed in. Give it a loss_fn=... that calls the "
                "module, take GradientNorm(at='step'), or use strategy='ddp'."
            )
        if getattr(strategy, "_tensor_parallel_size", 1) != 1:
            raise ValueError(
                f"{owner} adds up over processes that have different examples; those of a tensor-parallel group have "
                "the same. Use tensor_parallel_size=1, or strategy='ddp'."
            )
        return
    for kind, reason in REASONS.items():
        if kind in kinds:
            raise ValueError(
                f"{owner} cannot work under {name}: {reason}. Use strategy='ddp', a single device, or {FSDP2}."
            )
