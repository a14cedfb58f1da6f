"""Trains one cell of a map: fixed rates α and β, from given weights, until the last iteration or divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from lightning_gp.checks import choice, number, whole
from lightning_gp.contracts import Objective
from lightning_gp.trainability.objective import rate_of, value_and_gradients
from lightning_gp.trainability.stream import BatchStream

OptimizerName = Literal["sgd", "adam"]
OuterOptimizer: TypeAlias = OptimizerName | Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""A name, or a function of the parameters and β."""

LOOK_EVERY = 20
"""Iterations between looks at the loss on an accelerator, where each look waits for it; on a CPU it is each one."""


class Outcome(NamedTuple):
    """How a cell ended.

    Attributes:
        loss: of the trained parameters, on the batch that comes next; None if training diverged.
        first_loss: of the initial parameters on the first batch; None if it is not finite.
        iterations: outer steps until the end, or until divergence was seen.
    """

    loss: float | None
    first_loss: float | None
    iterations: int

    @property
    def diverged(self) -> bool:
        """Whether training diverged."""
        return self.loss is None

    @property
    def worse(self) -> bool:
        """Whether training diverged or ended with a higher loss than it began with."""
        return self.loss is None or self.first_loss is None or not self.loss < self.first_loss


class CellTrainer:
    """Trains one objective again and again from the same weights, on the same batches, with other rates.

    ``objective`` is any module with the methods of ``EnvironmentModule``; its parameters are the initial weights, and
    it has them back when a call returns. It must be a function of parameters, batch and α: on a CPU its operations are
    recorded and run again (``recording``), which is checked where a loss is reported. Training diverges when the loss
    is not finite or leaves ± ``divergence`` · |loss of the first iteration|.

    Args:
        objective: what to train; α is its ``inner_lr`` (MAML and relatives), ``coefficient`` (GradientPenalty) or
            ``penalty_weight`` (IRMv1).
        stream: the batches.
        optimizer: ``"sgd"``, ``"adam"``, or a function of the parameters and β.
        divergence: bound of the loss relative to the first one, > 1.
        seed: of whatever is random in training, such as dropout.
        varies: whether α is varied; without, any objective will do, and α is what it is.

    Attributes:
        trained: the parameters at the end of the last call that did not diverge.

    Raises:
        TypeError, ValueError: see ``rate_of``; if ``optimizer`` is unknown or ``divergence`` ≤ 1.
        RuntimeError: when called, if the objective is no function of parameters, batch and α (``recording``).

    Example:
        >>> from lightning_gp import MAML, Environments
        >>> x = torch.linspace(-1, 1, 5).reshape(1, 5, 1)
        >>> module = MAML(nn.Linear(1, 1), criterion=nn.functional.mse_loss)
        >>> train = CellTrainer(module, BatchStream(Environments((x, 2 * x), (x, 2 * x))))
        >>> train(0.1, 0.5, iterations=200).loss < 1e-6, train(0.1, 50.0, iterations=200).loss
        (True, None)
    """

    def __init__(
        self,
        objective: Objective,
        stream: BatchStream,
        optimizer: OuterOptimizer = "sgd",
        divergence: float = 1e4,
        seed: int = 0,
        varies: bool = True,
    ) -> None:
        self.rate = rate_of(objective) if varies else None
        number(above=1, divergence=divergence)
        whole(0, seed=seed)
        if not callable(optimizer):
            choice(OPTIMIZERS, optimizer=optimizer)
        cast(nn.Module, objective).to(stream.device).train()
        self.objective, self.stream = objective, stream
        self.build = optimizer if callable(optimizer) else OPTIMIZERS[optimizer]
        self.divergence = divergence
        self.seed = seed
        self.parameters: list[nn.Parameter] = objective.trained_parameters()
        self.trained: list[Tensor] = []
        self.initial = [parameter.detach().clone() for parameter in self.parameters]
        self.evaluate = value_and_gradients(self.objective, self.rate)
        self.look_every = 1 if stream.device.type == "cpu" else LOOK_EVERY

    def first_loss(self, inner_lr: float) -> float:
        """The objective of the initial weights on the first batch."""
        self._start(inner_lr)
        return self.evaluate(next(self.stream.first(1)))[0].item()

    def __call__(
        self, inner_lr: float, outer_lr: float, iterations: int, on_loss: Callable[[int, float], None] | None = None
    ) -> Outcome:
        """Trains for ``iterations`` outer steps.

        Args:
            inner_lr: α ≥ 0.
            outer_lr: β > 0.
            iterations: outer steps, at least 1.
            on_loss: called with the iteration and its loss, before its step, where the loss is looked at.

        Returns:
            The outcome; the weights are the initial ones again.
        """
        self._start(inner_lr)
        optimizer = self.build(self.parameters, outer_lr)
        worst: Tensor | None = None
        first: float | None = None
        bound = math.inf
        try:
            for iteration, batch in enumerate(self.stream.first(iterations + 1)):
                loss, gradients = self.evaluate(batch)
                worst = loss.abs() if worst is None else torch.maximum(worst, loss.abs())  # keeps NaN
                if iteration == 0:
                    first = loss.item() if math.isfinite(loss.item()) else None
                    bound = self.divergence * max(worst.item(), torch.finfo(loss.dtype).tiny)
                if iteration % self.look_every == 0 or iteration == iterations:
                    if not (math.isfinite(seen := worst.item()) and seen <= bound):
                        return Outcome(None, first, iteration)
                    if on_loss is not None:
                        on_loss(iteration, loss.item())
                if iteration == iterations:
                    self.evaluate.confirm(batch, loss)
                    self.trained = [parameter.detach().clone() for parameter in self.parameters]
                    return Outcome(loss.item(), first, iterations)
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            raise AssertionError("the stream of batches ended")
        finally:
            self._restore()

    def _start(self, inner_lr: float) -> None:
        torch.manual_seed(self.seed)
        self._restore()
        if self.rate is not None:
            self.rate.set(inner_lr)

    def _restore(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.parameters), self.initial)
        for parameter in self.parameters:
            parameter.grad = None


class _GradientDescent:
    """``torch.optim.SGD``'s numbers in a quarter of its time, which small networks notice."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        self.parameters, self.rate = parameters, rate

    @torch.no_grad()
    def step(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters]
        torch._foreach_add_(list[Any](self.parameters), list[Any](gradients), alpha=-self.rate)


def _adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], Any]] = {"sgd": _GradientDescent, "adam": _adam}
"""What a name for the outer optimizer stands for."""
