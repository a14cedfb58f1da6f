"""A ready-made W&B workspace for what this package logs, built with the ``wandb-workspaces`` package.

Panels find their curves by regular expressions on the keys, so they also show what a callback logs under a finer key
(one curve per environment split, inner step or eigenvalue) without being rebuilt. What no panel here shows gets one of
its own from the ``keys`` that a callback declares: a new callback is drawn without being named here.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lightning_gp.callbacks import Probe
    from lightning_gp.modules import EnvironmentModule

STEP = "trainer/global_step"  # the x-axis that Lightning's WandbLogger defines
MISSING = "The dashboard needs wandb-workspaces, which is not installed: pip install 'lightning-gp[dashboards]'"


class Curves(NamedTuple):
    """A line plot of every key that matches ``keys``, against the global step."""

    title: str
    keys: str
    log_y: bool = False


class Pictures(NamedTuple):
    """A browser of the pictures logged under ``keys``, step by step."""

    title: str
    keys: tuple[str, ...]


# `^.*` leaves room for the `prefix` of a callback.
SECTIONS: dict[str, tuple[Curves | Pictures, ...]] = {
    "training": (
        Curves("Training loss and its terms", r"^train/(?!penalty_weight).*$"),
        Curves("Weight of the penalty", r"^train/penalty_weight(_step|_epoch)?$"),
        Curves("Validation loss", r"^val/loss$"),
        Curves("Validation accuracy", r"^val/accuracy$"),
    ),
    "adaptation": (
        Curves("Query loss after k inner steps", r"^val/loss_step_\d+$"),
        Curves("Query accuracy after k inner steps", r"^val/accuracy_step_\d+$"),
    ),
    "gradients": (
        Curves("Gradient norm", r"^.*gradients/norm(_\d+)?(/.*)?$", log_y=True),
        Curves("Cosine similarity", r"^.*gradients/cosine(_min)?$"),
        Curves("Inner product of query and support gradients", r"^.*gradients/inner_product$"),
        Pictures("Norms and cosines", ("gradients/norm_histogram", "gradients/cosine_matrix")),
    ),
    "linearity": (
        Curves("Phase consistency (1: straight)", r"^.*linearity/phase_consistency$"),
        Curves("Amplitude consistency (1: constant)", r"^.*linearity/amplitude_consistency$"),
        Curves("Part of the change that is not linear (0: linear)", r"^.*linearity/linearisation_error$"),
        Curves("Length of the support gradient along the path", r"^.*linearity/loss_gradient_ratio$"),
        Curves("Noise of the inner step", r"^.*linearity/noise$"),
        Curves("Agreement with the prototype classifier", r"^.*linearity/prototype_(agreement|cosine)$"),
    ),
    "curvature": (
        Curves("Hessian eigenvalues", r"^.*curvature/eigenvalue_\d+(/.*)?$"),
        Curves("Largest eigenvalue of an environment", r"^.*curvature/environment_(max|mean|std)$"),
        Curves("Residuals of the eigenpairs", r"^.*curvature/residual_\d+$", log_y=True),
        Curves("Hessian-vector products", r"^.*curvature/products$"),
        Curves("Eigenvalues as good as asked (1) or not (0)", r"^.*curvature/converged$"),
        Curves("Trace", r"^.*curvature/trace(_standard_error)?$"),
        Curves("Eigenvalues by differences", r"^.*differences/eigenvalue_\d+$"),
        Curves("Disagreement of differences", r"^.*differences/residual_\d+$", log_y=True),
        Curves("Differences taken", r"^.*differences/products$"),
        Curves("Differences that agree (1) or not (0)", r"^.*differences/converged$"),
        Curves("Displacement of differences", r"^.*differences/step$", log_y=True),
        Pictures("Spectral density", ("curvature/spectral_density",)),
    ),
    "learning rates": (
        Curves("Distance to the edge (1: unstable beyond)", r"^.*learning_rates/edge$", log_y=True),
        Curves("Outer rate and the critical one", r"^.*learning_rates/outer(_critical)?$", log_y=True),
        Curves("Inner rate and 1/λ_max", r"^.*learning_rates/inner(_critical)?$", log_y=True),
        Curves("Inner rate · λ_max", r"^.*learning_rates/inner_ratio$", log_y=True),
        Curves(
            "Rate at which the loss turns up",
            r"^.*learning_rates/turning(_ratio|_min|_mean)?$",
            log_y=True,
        ),
        Curves("Forward passes of that", r"^.*learning_rates/forward_passes$"),
        Curves("Curvature under the preconditioner", r"^.*learning_rates/(curvature|residual)$", log_y=True),
        Curves("Curvature as good as asked (1) or not (0)", r"^.*learning_rates/converged$"),
    ),
}


def sections() -> dict[str, tuple[Curves | Pictures, ...]]:
    """``SECTIONS``, and a panel for each declared key that none of them shows, in the section of its first word.

    Of the callbacks of ``lightning_gp.callbacks``, the modules of ``lightning_gp.modules``, and all their subclasses
    that have been imported. What a module logs belongs to ``training``.

    Example:
        >>> list(sections())[:2]
        ['training', 'adaptation']
    """
    found = dict(SECTIONS)
    kinds: list[Any] = [*module_classes(), *callback_classes()]
    for key in [key for kind in kinds for key in kind.keys]:
        name = re.sub("<[a-z]+>", "x", key.name.replace("<i>", "1").replace("<stage>", "val"))
        if any(shows(panel, name) for panels in found.values() for panel in panels):
            continue
        first = key.name.partition("/")[0].replace("_", " ")
        section = "training" if first in ("train", "<stage>") else first
        pattern = f"^.*{key.pattern}$".replace("^.*(val|test)", "^val").replace("(_ci95)?$", "$")
        title = key.name.replace("<stage>", "val")
        panel = Curves(title, pattern) if key.range else Pictures(title, (key.name,))
        found[section] = (*found.get(section, ()), panel)
    return found


def shows(panel: Curves | Pictures, key: str) -> bool:
    """Whether a panel shows what is logged under ``key``."""
    return key in panel.keys if isinstance(panel, Pictures) else re.search(panel.keys, key) is not None


def callback_classes() -> Iterator[type[Probe]]:
    """Every subclass of ``Probe``: the package's own and those that have been imported."""
    yield from _subclasses("lightning_gp.callbacks", "Probe")


def module_classes() -> Iterator[type[EnvironmentModule]]:
    """Every subclass of ``EnvironmentModule``, likewise."""
    yield from _subclasses("lightning_gp.modules", "EnvironmentModule")


def _subclasses(package: str, name: str) -> list[Any]:
    home = importlib.import_module(package)
    base = getattr(home, name)
    known: list[Any] = [getattr(home, each) for each in home.__all__]
    waiting = [base]
    while waiting:
        more = waiting.pop().__subclasses__()
        known += more
        waiting += more
    return [each for each in dict.fromkeys(known) if isinstance(each, type) and issubclass(each, base) and each != base]


def build(entity: str, project: str, name: str = "lightning-gp") -> Any:
    """The workspace, not saved yet; needs neither an account nor a network.

    Args:
        entity: W&B user or team.
        project: W&B project.
        name: of the workspace.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``; its ``save()`` needs an account.

    Raises:
        ImportError: if wandb-workspaces is not installed.
        ValueError: if the entity or the project is empty.
    """
    for option, value in (("entity", entity), ("project", project)):
        if not value.strip():
            raise ValueError(f"{option}={value!r} is empty; name the W&B {option} that the runs are in.")
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError(MISSING) from error
    made = [
        ws.Section(name=title, panels=[_panel(panel) for panel in panels], is_open=True)
        for title, panels in sections().items()
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP)
    return ws.Workspace(entity=entity, project=project, name=name, sections=made, settings=settings)


def describe(entity: str, project: str, name: str = "lightning-gp") -> str:
    """What ``build`` makes, as text: sections, panels and the keys of each.

    Args:
        entity: W&B user or team.
        project: W&B project.
        name: of the workspace.

    Returns:
        Several lines.

    Raises:
        ImportError: if wandb-workspaces is not installed.
        ValueError: if the entity or the project is empty.
    """
    workspace = build(entity, project, name)
    lines = [f"W&B workspace {workspace.name!r} of {workspace.entity}/{workspace.project}, x-axis {STEP}"]
    for section in workspace.sections:
        lines.append(f"{section.name}")
        for panel in section.panels:
            keys = getattr(panel, "metric_regex", None) or ", ".join(panel.media_keys)
            lines.append(f"  {panel.title:<36} {keys}")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """``lightning-gp dashboard``: saves the workspace and prints its address, or with ``--dry-run`` what it would be.

    Args:
        args: command-line arguments; None for the process's own.

    Raises:
        ImportError: if wandb-workspaces is not installed.
        ValueError: if the entity or the project is empty, or W&B refuses to save (not logged in, no such project).
    """
    parser = argparse.ArgumentParser(prog="lightning-gp dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project that the runs are in")
    parser.add_argument("--name", default="lightning-gp", help="name of the workspace (default: %(default)s)")
    parser.add_argument("--callback", action="append", default=[], help="a callback of yours, such as mine.MyProbe")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace; needs no account")
    options = parser.parse_args(args)
    for path in options.callback:
        _imported(path)
    if options.dry_run:
        print(describe(options.entity, options.project, options.name))
        return
    workspace = build(options.entity, options.project, options.name)
    from wandb.errors import Error

    try:
        workspace.save()
    except Error as error:
        raise ValueError(f"W&B did not save the workspace: {error} (--dry-run shows it without an account.)") from error
    print(f"Saved: {workspace.url}")


def _imported(path: str) -> None:
    home, _, name = path.rpartition(".")
    if not home or not hasattr(importlib.import_module(home), name):
        raise ValueError(f"callback={path!r} names nothing; give the import path of a class, such as mine.MyProbe.")


def _panel(panel: Curves | Pictures) -> Any:
    from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser

    if isinstance(panel, Pictures):
        return MediaBrowser(title=panel.title, media_keys=list(panel.keys), gallery_axis="step")
    return LinePlot(title=panel.title, x=STEP, metric_regex=panel.keys, log_y=panel.log_y or None)
