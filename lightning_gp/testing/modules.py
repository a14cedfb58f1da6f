"""``check_module``: what an algorithm promises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.testing.module_batch import gradient, pickled, shapes, terms, vectorize
from lightning_gp.testing.module_runs import callbacks, checkpoint, processes, repeated, resumed
from lightning_gp.testing.promises import Checks, check_promises
from lightning_gp.testing.runs import Data
from lightning_gp.testing.subject import Subject

PROMISES = (gradient, vectorize, terms, shapes, repeated, resumed, checkpoint, callbacks, processes, pickled)


def check_module(
    make_module: Callable[[], EnvironmentModule], make_data: Callable[[], Data], skip: Collection[str] = ()
) -> Checks:
    """Checks what an ``EnvironmentModule`` promises, on short trainings in float64 on the CPU.

    | promise | kept where |
    |---|---|
    | ``gradient`` | the gradient of ``training_loss`` is that of finite differences; of a first-order algorithm, the \
one at the adapted parameters |
    | ``vectorize`` | loss and gradient are the same for every ``vectorize`` |
    | ``terms`` | the weighted terms add up to the objective, and its mean is the training loss |
    | ``shapes`` | targets (E, Q) for outputs (E, Q, 1) are refused |
    | ``repeated`` | two runs from the same seed are bitwise equal |
    | ``resumed`` | an interrupted and resumed run is bitwise the one that was not |
    | ``checkpoint`` | checkpoints are read without running code, into the same loss |
    | ``callbacks`` | with every probe attached, the weights are bitwise the same |
    | ``processes`` | two processes give the weights of one, to 1e-10 |
    | ``pickled`` | a pickled module and a deep copy have the same loss |

    Args:
        make_module: builds the module; random numbers are seeded before each call.
        make_data: builds its data module, a loader, or a list of batches; with two environments at least, better four.
        skip: names of promises to leave out, such as ``"gradient"`` for an objective that stops gradients on purpose.

    Returns:
        The names of the promises that were checked; ``skipped`` says why the others were not.

    Raises:
        TypeError: if ``make_module`` builds no ``EnvironmentModule``.
        ValueError: if ``skip`` names no promise.
        AssertionError: naming the promise that is broken, by how much, and what to change.

    Example::

        def test_my_algorithm():
            check_module(lambda: Mine(SinusoidMLP(), criterion=mse_loss), SinusoidDataModule)
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        subject = Subject(make_module, make_data, Path(folder))
        if not isinstance(subject.module(), EnvironmentModule):
            raise TypeError(
                f"make_module built a {type(subject.module()).__name__}; check_module takes a function that builds an "
                "EnvironmentModule, such as lambda: MAML(network)."
            )
        promises = {check.__name__: partial(check, subject) for check in PROMISES}
        return check_promises(type(subject.module()).__name__, promises, skip)
