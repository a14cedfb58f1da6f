"""Names of the types that signatures repeat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Required, TypedDict

Parameters: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name; a *stack* has a leading environment axis (E, *shape)."""
Examples: TypeAlias = tuple[Tensor, Tensor]
"""Inputs and targets of one split: ``x`` (E, K, *feature) and ``y`` (E, K, *target)."""
Split: TypeAlias = Literal["support", "query"]
Loss: TypeAlias = Callable[[Parameters, Tensor, Tensor], Tensor]
"""``loss(parameters, x, y)``: the scalar loss of one environment, x (K, *feature), y (K, *target)."""
Predict: TypeAlias = Callable[[Parameters, Tensor], Tensor]
"""``predict(parameters, x)``: the outputs (K, ...) of one environment."""
Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``criterion(outputs, targets)``: a scalar mean."""
Rates: TypeAlias = float | Tensor | Mapping[str, float | Tensor]
"""One inner rate for all parameters, or one per parameter name; a Tensor of the parameter's shape is elementwise."""
RateSchedule: TypeAlias = Rates | tuple[Rates, ...]
"""The same rates at every inner step, or those of each step; the last ones stand for all further steps."""
InnerOptimizer: TypeAlias = Callable[[list[Tensor]], torch.optim.Optimizer]
"""Builds the optimizer of the inner loop from a list of tensors."""
OptimizerCallable: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
LRSchedulerCallable: TypeAlias = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Weighting: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``weighting(losses, gram)``: weights (E,) from losses (E,) and the Gram matrix (E, E) of their gradients."""
WeightingName: TypeAlias = Literal["mean", "group_dro", "mgda", "pcgrad", "upgrad"]
ParameterChoice: TypeAlias = str | Sequence[str] | Callable[[str], bool]
"""``"all"``, ``"head"``, ``"body"``, a list of name prefixes, or a predicate on names."""
Direction: TypeAlias = Literal["descent", "ascent"]
Names: TypeAlias = Collection[str]


class MetaGradient(NamedTuple):
    """The query losses and the gradient of their weighted sum.

    Attributes:
        losses: adapted query loss of each environment, (E,).
        parameters: gradient of ``weight · Σ losses`` by θ_0, tensors (*shape).
        rates: gradient of the same by the inner rate of each adapted parameter, elementwise, (*shape); empty unless
            asked for.
    """

    losses: Tensor
    parameters: Parameters
    rates: Parameters


class SchedulerConfig(TypedDict, total=False):
    """A scheduler with when to step it, as in Lightning's own dictionary.

    Attributes:
        scheduler: builds it from the optimizer.
        interval: ``"step"`` or ``"epoch"``.
        frequency: every how many of them.
        monitor: the metric that ``ReduceLROnPlateau`` watches.
        strict: whether a metric that is missing is an error.
        name: of the scheduler in logs.
    """

    scheduler: Required[LRSchedulerCallable]
    interval: Literal["step", "epoch"]
    frequency: int
    monitor: str
    strict: bool
    name: str


class ModuleOptions(TypedDict, total=False):
    """Arguments of ``EnvironmentModule`` that every algorithm takes.

    Attributes:
        criterion: maps predictions (K, ...) and targets (K, ...) to a scalar mean.
        optimizer: builds the (outer) optimizer from the parameters.
        lr_scheduler: builds a learning-rate scheduler from the optimizer, or None.
        vectorize: how many environments to compute at once: ``"auto"``, True, False or a number.
        weighting: of the environments: ``"mean"``, ``"group_dro"``, ``"mgda"``, ``"pcgrad"``, ``"upgrad"``, or a
            function of their losses and of the Gram matrix of their gradients.
    """

    criterion: Criterion
    optimizer: OptimizerCallable
    lr_scheduler: SchedulerConfig | LRSchedulerCallable | None
    vectorize: bool | int | Literal["auto"]
    weighting: WeightingName | Weighting


class InnerLoopOptions(ModuleOptions, total=False):
    """Arguments of ``MAML`` that its relatives pass on.

    Attributes:
        eval_inner_steps: inner steps at validation and test; None for ``inner_steps``.
        learn_inner_lr: train the inner rates as well, starting from ``inner_lr``.
        inner_lr_per: granularity of learned rates: ``"scalar"``, ``"parameter"``, ``"element"`` or ``"step"``.
        direction: ``"descent"`` or ``"ascent"`` of the support loss.
        normalize: steps of length ``inner_lr`` along the gradient.
        multi_step_loss: optimizer steps over which the loss after every inner step counts.
        inner_optimizer: builds a ``torch.optim`` optimizer for the inner loop, in place of gradient descent.
        recompute: compute each inner step again instead of storing its graph.
        compile: compile the whole step with ``torch.compile`` (slow to start).
    """

    eval_inner_steps: int | None
    learn_inner_lr: bool
    inner_lr_per: Literal["scalar", "parameter", "element", "step"]
    direction: Direction
    normalize: bool
    multi_step_loss: int
    inner_optimizer: InnerOptimizer | None
    recompute: bool
    compile: bool
