"""The peers' outer steps, written the way their users write them: one Python loop over tasks.

Each function returns ``accumulate(environments)``, which leaves the mean meta-gradient over the environments in the
``.grad`` of ``network``; the caller zeroes the gradients before and steps the optimizer after.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gp import Environments

Accumulate = Callable[[Environments], None]
Criterion = Callable[[Tensor, Tensor], Tensor]


def _tasks(environments: Environments) -> zip[tuple[Tensor, Tensor, Tensor, Tensor]]:
    if environments.query is None:
        raise ValueError("the meta-learning benchmarks need a query set")
    return zip(*environments.support, *environments.query, strict=True)


def learn2learn_maml(
    network: nn.Module, criterion: Criterion, inner_lr: float, inner_steps: int, first_order: bool = False
) -> Accumulate:
    """learn2learn: clone, adapt, backward per task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gym's call to upgrade
        from learn2learn.algorithms import MAML

    maml = MAML(network, lr=inner_lr, first_order=first_order)

    def accumulate(environments: Environments) -> None:
        count = environments.support[0].shape[0]
        for x, y, x_query, y_query in _tasks(environments):
            learner = maml.clone()
            for _ in range(inner_steps):
                learner.adapt(criterion(learner(x), y))
            (criterion(learner(x_query), y_query) / count).backward()

    return accumulate


def higher_maml(
    network: nn.Module, criterion: Criterion, inner_lr: float, inner_steps: int, first_order: bool = False
) -> Accumulate:
    """higher: one ``innerloop_ctx`` per task; first order without tracking, its gradients added by hand."""
    import higher

    inner = torch.optim.SGD(network.parameters(), lr=inner_lr)

    def accumulate(environments: Environments) -> None:
        count = environments.support[0].shape[0]
        for x, y, x_query, y_query in _tasks(environments):
            with higher.innerloop_ctx(
                network, inner, copy_initial_weights=False, track_higher_grads=not first_order
            ) as (fast, optimizer):
                for _ in range(inner_steps):
                    optimizer.step(criterion(fast(x), y))
                loss = criterion(fast(x_query), y_query) / count
                if not first_order:
                    loss.backward()
                    continue
                gradients = torch.autograd.grad(loss, list(fast.parameters()))
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    return accumulate


def func_maml(
    network: nn.Module,
    criterion: Criterion,
    inner_lr: float,
    inner_steps: int,
    first_order: bool = False,
    compile: bool = False,
) -> Accumulate:
    """``torch.func`` by hand: ``vmap(grad(task))`` over all tasks at once, the mean inside, so that it compiles."""
    from torch.func import functional_call, grad, vmap

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(network, parameters, (x,)), y)

    def task(parameters: dict[str, Tensor], x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
        for _ in range(inner_steps):
            steps = grad(loss)(parameters, x, y)
            if first_order:
                steps = {name: step.detach() for name, step in steps.items()}
            parameters = {name: value - inner_lr * steps[name] for name, value in parameters.items()}
        return loss(parameters, x_query, y_query)

    def gradients(parameters: dict[str, Tensor], *tensors: Tensor) -> dict[str, Tensor]:
        every = vmap(grad(task), in_dims=(None, 0, 0, 0, 0))(parameters, *tensors)
        return {name: gradient.mean(0) for name, gradient in every.items()}

    function = torch.compile(gradients, dynamic=False) if compile else gradients

    def accumulate(environments: Environments) -> None:
        found = function({name: value.detach() for name, value in network.named_parameters()}, *environments.tensors())
        for name, parameter in network.named_parameters():
            parameter.grad = found[name]

    return accumulate
