"""What a module promises of a training; each raises where that is not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gp._lightning import LightningDataModule
from lightning_gp.callbacks import Probe
from lightning_gp.contracts import dealt_by
from lightning_gp.modules.checks import handled_by
from lightning_gp.testing.probes import probe_classes
from lightning_gp.testing.processes import on_processes
from lightning_gp.testing.promises import InapplicableError, require
from lightning_gp.testing.runs import difference, fit, middle, relative, state_of
from lightning_gp.testing.subject import Subject


def repeated(subject: Subject) -> None:
    """The same seed gives the same weights."""
    module = subject.module()
    fit(module, subject.data())
    apart = difference(state_of(module), subject.whole)
    require(
        not apart,
        f"two runs from the same seed end with other weights: {apart}.",
        "draw random numbers from torch, numpy or random, which seed_everything seeds, not from a generator of your "
        "own without a seed, the time, or the order of a set.",
    )


def resumed(subject: Subject) -> None:
    """An interruption changes nothing."""
    if subject.random:
        raise InapplicableError("training draws random numbers, whose state is in no checkpoint")
    subject.whole  # noqa: B018  # leaves the checkpoints
    module = subject.module()
    path = middle(subject.folder)
    fit(module, subject.data(), resume=path)
    apart = difference(state_of(module), subject.whole)
    require(
        not apart,
        f"a run that was interrupted after {path.stem} and resumed ends with other weights: {apart}.",
        "keep what a step changes in parameters or buffers, or save it in on_save_checkpoint and put it back in "
        "on_load_checkpoint; global_step is restored by Lightning.",
    )


def checkpoint(subject: Subject) -> None:
    """Checkpoints are plain."""
    subject.whole  # noqa: B018  # leaves the checkpoints
    try:
        content = torch.load(middle(subject.folder), weights_only=True)
    except Exception as error:
        raise AssertionError(
            f"its checkpoints cannot be read without running code: {error}. To mend it: save plain numbers, text, "
            "lists, dicts and tensors, also as hyperparameters."
        ) from error
    module = subject.module()
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise AssertionError(
            f"its checkpoint does not fit a new module: {error}. To mend it: make all parameters and buffers in "
            "__init__."
        ) from error


def callbacks(subject: Subject) -> None:
    """Callbacks change nothing."""
    try:
        _attached(subject, probe_classes())
    except ValueError:  # one of them refuses this module
        for kind in probe_classes():
            with contextlib.suppress(ValueError):
                _attached(subject, [kind])


def _attached(subject: Subject, kinds: Sequence[type[Probe]]) -> None:
    module = subject.module()
    fit(module, subject.data(), callbacks=[kind(probe_size=2) for kind in kinds])
    apart = difference(state_of(module), subject.whole)
    names = ", ".join(kind.__name__ for kind in kinds)
    require(
        not apart,
        f"with {names} attached, training ends with other weights: {apart}.",
        "change nothing in environment_losses, environment_objectives and what they call but the module's own "
        "attributes, which callbacks put back; nothing that lives in files, threads or other processes.",
    )


def processes(subject: Subject) -> None:
    """Two processes train as one."""
    data = subject.data()
    if not isinstance(data, LightningDataModule):
        raise InapplicableError("a loader or a list is not dealt to processes; give a data module")
    dealt, handled = dealt_by(data), handled_by(subject.module())
    if dealt not in handled:
        raise InapplicableError(f"the data are dealt in {dealt!r}, which the module refuses (handles={handled})")
    if subject.random:
        raise InapplicableError("each process draws random numbers of its own")

    def trained(rank: int) -> dict[str, Tensor]:
        module = subject.module()
        fit(module, subject.data(), devices=2)
        return state_of(module)

    module = subject.module()
    fit(module, subject.data())
    names = dict(module.named_parameters())
    expected = {name: value for name, value in state_of(module).items() if name in names}
    for rank, found in enumerate(on_processes(trained)):
        error = relative(found, expected)
        require(
            error <= 1e-10,
            f"two processes train to other weights than one: process {rank} is off by {error:.2g} (relative, allowed "
            f"1e-10), with data dealt in {dealt!r}.",
            "sum over processes what the objective takes over all environments or examples, by "
            "functional.processes.sum_over_processes or mean_over_examples; or declare handles = ('episodes',).",
        )
