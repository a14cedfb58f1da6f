"""Running an inner loop that is one value, and differentiating it by the written-out gradient: both take the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gp.functional.adaptation import Trajectory, adapt
from lightning_gp.functional.meta_gradient import meta_gradient
from lightning_gp.loops import InnerLoop
from lightning_gp.types import Examples, MetaGradient, Parameters


def run(
    loop: InnerLoop,
    parameters: Parameters,
    support: Examples,
    *,
    create_graph: bool = True,
    final_gradient: bool = False,
    keep_path: bool = True,
) -> Trajectory:
    """The path θ_0 … θ_S in each environment.

    Args:
        loop: what is adapted, and how.
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        create_graph: see ``functional.adapt``.
        final_gradient: see ``functional.adapt``.
        keep_path: see ``functional.adapt``.

    Example:
        >>> import torch
        >>> loop = InnerLoop(lambda p, x, y: (p["w"] * x - y).square().mean(), rates=0.25)
        >>> x = torch.ones(2, 3)
        >>> run(loop, {"w": torch.zeros(())}, (x, 2 * x)).parameters[-1]["w"].tolist()
        [1.0, 1.0]
    """
    return adapt(
        loop.loss,
        parameters,
        support,
        loop.signed_rates,
        loop.steps,
        first_order=loop.first_order,
        adapted=loop.adapted,
        create_graph=create_graph,
        final_gradient=final_gradient,
        inner_optimizer=loop.optimizer,
        normalize=loop.normalize,
        proximal=loop.proximal,
        keep_path=keep_path,
    )


def differentiate(
    loop: InnerLoop,
    parameters: Parameters,
    support: Examples,
    query: Examples,
    *,
    function: Callable[..., MetaGradient] = meta_gradient,
    **options: Any,
) -> MetaGradient:
    """The written-out gradient of the query losses at θ_S; see ``functional.meta_gradient``.

    Args:
        loop: what is adapted, and how.
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        query: x (E, Q, *feature), y (E, Q, *target).
        function: ``meta_gradient``, or what ``torch.compile`` made of it.
        **options: ``weight``, ``rate_gradients``, ``traceable``.

    Raises:
        ValueError: if the loop is not plain: only gradient descent and ascent with one set of rates are written out.
    """
    check_plain(loop)
    assert not isinstance(loop.rates, tuple)
    result = function(
        loop.loss,
        parameters,
        support,
        query,
        loop.signed_rates,
        loop.steps,
        first_order=loop.first_order,
        adapted=loop.adapted,
        **options,
    )
    return result._replace(rates={name: loop.sign * gradient for name, gradient in result.rates.items()})


def check_plain(loop: InnerLoop) -> None:
    """Refuses an inner loop whose gradient is not written out.

    Args:
        loop: the inner loop.

    Raises:
        ValueError: naming what it has beside plain steps.
    """
    beside = {
        "inner_optimizer": loop.optimizer is not None,
        "normalize": loop.normalize,
        "rates for each step": isinstance(loop.rates, tuple),
        "a proximal term": loop.proximal > 0,
    }
    found = [name for name, present in beside.items() if present]
    if found:
        raise ValueError(
            "recompute=True and compile=True write out the gradient of plain gradient descent or ascent; leave both "
            f"False together with {', '.join(found)}."
        )
