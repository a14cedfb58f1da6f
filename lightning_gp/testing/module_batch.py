"""What a module promises of a single batch; each raises where that is not kept."""

from __future__ import annotations

import copy
import pickle

import torch

from lightning_gp.contracts import Adapts
from lightning_gp.environments import count_of
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.testing.gradients import (
    TOLERANCE,
    by_finite_differences,
    first_order_gradient,
    holds_constant,
    loss_and_gradient,
    update_of,
)
from lightning_gp.testing.promises import InapplicableError, require
from lightning_gp.testing.runs import difference, relative
from lightning_gp.testing.subject import Subject
from lightning_gp.types import Split


def gradient(subject: Subject) -> None:
    """The gradient is that of another computation."""
    module = subject.module()
    _, found = loss_and_gradient(module, subject.batch)
    if isinstance(module, Adapts) and module.inner_loop().first_order:
        expected = first_order_gradient(module, subject.batch)
        error = relative(found, expected)
        reference, worst = "the first-order gradient, at the adapted parameters", "the whole"
    elif module.couples_environments and holds_constant(module, subject.batch):
        error, reference, worst = relative(found, update_of(module, subject.batch)), "what the objective gives", "all"
    else:
        error, worst = by_finite_differences(module, subject.batch, found)
        reference = "finite differences"
    require(
        error <= TOLERANCE,
        f"the gradient of training_loss is off {reference} by {error:.2g} (relative, allowed {TOLERANCE:g}), most in "
        f"{worst}.",
        "let environment_objectives be plain differentiable torch (no detach, .item(), .data or numpy), and give a "
        "gradient that explicit() writes out its missing factors; for an objective that stops gradients on purpose, "
        "skip='gradient'.",
    )


def vectorize(subject: Subject) -> None:
    """``vectorize`` changes nothing."""
    results = {}
    for way in (False, True, "auto", 2):
        module = subject.module()
        module.vectorize = way  # type: ignore[assignment]  # one of what is allowed
        try:
            results[way] = loss_and_gradient(module, subject.batch)
        except RuntimeError as error:
            if way is True and "cannot be computed for several" in str(error):
                raise InapplicableError(str(error)) from error
            raise
        except ValueError as error:
            require("depends on those" not in str(error), str(error), "give each environment a number of its own.")
            raise
    loss, gradient = results[False]
    for way, (other, found) in results.items():
        apart = max(abs(other - loss) / (abs(loss) + 1e-12), relative(found, gradient))
        require(
            subject.random or apart <= 1e-9,
            f"vectorize={way!r} gives another loss or gradient than vectorize=False: {other:.12g} for {loss:.12g}, "
            f"together {apart:.2g} apart (relative, allowed 1e-9).",
            "let environment_objectives give each environment a number of its own, without a mean or maximum over "
            "the environments of a chunk; or declare couples_environments = True and compute all at once.",
        )


def terms(subject: Subject) -> None:
    """The terms add up to the objective, whose mean is the loss."""
    module, parameters = subject.module(), subject.module().network_parameters()
    if subject.random:
        raise InapplicableError("the objective draws random numbers")
    if module.couples_environments and len(subject.batch) > 1:
        raise InapplicableError("environments of unequal size are coupled, so that the objective of one means nothing")
    with torch.enable_grad():
        objectives = [module.environment_objectives(parameters, each).detach() for each in subject.batch]
    shapes = [(tuple(value.shape), (count_of(each),)) for value, each in zip(objectives, subject.batch, strict=True)]
    require(
        all(found == wanted for found, wanted in shapes),
        f"environment_objectives has shape {shapes[0][0]}, not {shapes[0][1]}: one number for each environment.",
        "take the mean over examples, not over environments.",
    )
    loss, mean = module.training_loss(subject.batch).item(), torch.cat(objectives).mean().item()
    mend = "override environment_terms and term_weights alone, of which everything else is made."
    require(
        abs(loss - mean) <= 1e-9 * (1 + abs(mean)),
        f"training_loss is {loss:.12g}, but the mean of environment_objectives is {mean:.12g}.",
        mend,
    )
    if type(module).combined is EnvironmentModule.combined:
        _added_up(subject, module, loss, mend)


def _added_up(subject: Subject, module: EnvironmentModule, loss: float, mend: str) -> None:
    terms, weights = module.training_terms(subject.batch)[1], module.term_weights()
    if terms:
        total = sum(weights.get(name, 1.0) * float(value) for name, value in terms.items())
        shown = " + ".join(f"{weights.get(name, 1.0):g}·{float(value):.6g} ({name})" for name, value in terms.items())
        require(abs(total - loss) <= 1e-9 * (1 + abs(loss)), f"{shown} is {total:.12g}, not {loss:.12g}.", mend)


def shapes(subject: Subject) -> None:
    """Targets that would broadcast are refused."""
    module = subject.module()
    splits: tuple[Split, ...] = (
        ("support", "query") if isinstance(module, Adapts) and subject.batch[0].query else ("query",)
    )
    for split in splits:
        x, y = subject.batch[0].split(split)
        if y.ndim != 3 or y.shape[-1] != 1 or not y.is_floating_point():
            raise InapplicableError(f"targets of shape {tuple(y.shape)} and {y.dtype} cannot broadcast in silence")
        flat = (x, y[..., 0])
        environments = subject.batch[0]
        bad = environments._replace(support=flat)
        if split == "query" and environments.query is not None:
            bad = environments._replace(query=flat)
        module.training_loss(subject.batch)
        try:
            value = module.training_loss([bad, *subject.batch[1:]]).item()
        except ValueError:
            continue
        require(
            False,
            f"{split} targets of shape {tuple(flat[1].shape)} in place of {tuple(y.shape)} are not refused: they "
            f"broadcast against the outputs, and the loss is {value:.6g}.",
            "compute the loss by self.risk(outputs, y), or call modules.outputs.check_shapes(outputs, y, criterion) "
            "in loss().",
        )


def pickled(subject: Subject) -> None:
    """A pickled module and a deep copy are the module."""
    module = subject.module()
    try:
        copies = {"a pickled module": pickle.loads(pickle.dumps(module)), "a deep copy": copy.deepcopy(module)}
    except Exception as error:
        raise AssertionError(
            f"it cannot be pickled or copied: {error}. To mend it: keep no lambdas, local functions, generators or "
            "open files in its attributes; classes and functions at the top of a file can be pickled."
        ) from error
    expected, gradient = loss_and_gradient(module, subject.batch)
    for kind, other in copies.items():
        loss, found = loss_and_gradient(other, subject.batch)
        apart = difference(found, gradient)
        require(
            loss == expected and not apart,
            f"{kind} has the loss {loss:.12g}, the original {expected:.12g}; gradients differ in {apart or 'nothing'}.",
            "keep what the loss depends on in parameters, buffers and plain attributes.",
        )
