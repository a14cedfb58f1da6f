"""``diagnose``: one card on any LightningModule."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_gp import checks
from lightning_gp._lightning import LightningModule, pl
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.cosine_similarity import CosineSimilarity
from lightning_gp.callbacks.function_loss import LossFunction
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.callbacks.hessian_eigenvalues import HessianEigenvalues
from lightning_gp.callbacks.learning_rate_bounds import LearningRateBounds
from lightning_gp.callbacks.phase_amplitude_consistency import PhaseAmplitudeConsistency
from lightning_gp.contracts import Adapts
from lightning_gp.diagnosis.card import Card
from lightning_gp.trainability.rehearsal import rehearse
from lightning_gp.trainability.still import Still


def diagnose(
    module: LightningModule,
    data: Any,
    *,
    steps: int = 20,
    ckpt_path: str | Path | None = None,
    loss_fn: LossFunction | None = None,
    probe_size: int | None = None,
    accelerator: str = "auto",
) -> Card:
    """Measures gradients, curvature and the distance to the edge of any LightningModule, and says what to change.

    Nothing is trained. A copy of the module runs ``steps`` batches of its own training loop at rate 0, so that an
    adaptive optimizer has second moments of these weights; then the callbacks of this package measure once, as they
    would in a training. The module, its optimizers and the random state stay as they are.

    Args:
        module: any LightningModule with ``training_step`` and ``configure_optimizers``.
        data: a DataModule, or what ``Trainer.fit`` takes as training data.
        steps: training batches at rate 0.
        ckpt_path: a checkpoint of the module: its weights and the moments of its optimizer are taken.
        loss_fn: ``loss_fn(module, batch)``, where the callbacks cannot find the loss by themselves.
        probe_size: environments or examples to measure on, see ``callbacks.Probe``.
        accelerator: as for the Trainer.

    Returns:
        The card: ``print`` it, ``card.plot()``, ``card.as_dict()``.

    Raises:
        ValueError: if ``steps`` < 1, or nothing at all can be measured.
        TypeError: if ``module`` is no LightningModule.
        FileNotFoundError: if there is no such checkpoint.

    Example:
        >>> import torch
        >>> from lightning_gp import MAML
        >>> from lightning_gp.datamodules import SinusoidDataModule
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = MAML(SinusoidMLP((8,)), criterion=torch.nn.functional.mse_loss)
        >>> card = diagnose(module, SinusoidDataModule(environments_per_batch=4), steps=2, accelerator="cpu")
        >>> 0 < card.values["learning_rates/edge"] < 1
        True
    """
    checks.whole(1, steps=steps)
    checks.optional_whole(1, probe_size=probe_size)
    if not isinstance(module, LightningModule):
        raise TypeError(f"diagnose(module, data) takes a LightningModule, got {type(module).__name__}.")
    if ckpt_path is not None and "://" not in str(ckpt_path) and not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"There is no checkpoint {ckpt_path}; name a .ckpt file, or leave ckpt_path out.")
    begin = time.perf_counter()
    kinds = _measurements(module, steps, loss_fn, probe_size)

    def run(names: list[str]) -> tuple[list[Probe], str]:
        probes = [kinds[name]() for name in names]
        return probes, _run(module, data, probes, steps, ckpt_path, accelerator)

    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    optimizer = ""
    try:
        probes, optimizer = run(list(kinds))
    except (ValueError, RuntimeError) as error:
        first, probes = error, []
        for name in kinds:  # one by one, so that a measurement that is refused does not take the others with it
            try:
                found, optimizer = run([name])
                probes += found
            except (ValueError, RuntimeError) as reason:
                missing[name] = str(reason)
        if not probes:
            raise ValueError(f"Nothing could be measured of {type(module).__name__}: {first}") from first
    for probe in probes:
        values.update(probe.values)
    count = sum(value.numel() for value in module.parameters() if value.requires_grad)
    return Card(type(module).__name__, optimizer, count, values, missing, time.perf_counter() - begin)


def _measurements(
    module: LightningModule, steps: int, loss_fn: LossFunction | None, probe_size: int | None
) -> dict[str, Callable[[], Probe]]:
    options: dict[str, Any] = {"loss_fn": loss_fn, "every_n_steps": steps, "probe_size": probe_size}
    found: dict[str, Callable[[], Probe]] = {
        "LearningRateBounds": lambda: LearningRateBounds(**options),
        "GradientNorm": lambda: GradientNorm(at="probe", **options),
        "CosineSimilarity": lambda: CosineSimilarity(**options),
        "HessianEigenvalues": lambda: HessianEigenvalues(k=2, **options),
    }
    if isinstance(module, Adapts) and loss_fn is None:
        own: dict[str, Any] = {"every_n_steps": steps, "probe_size": probe_size}
        found["PhaseAmplitudeConsistency"] = lambda: PhaseAmplitudeConsistency(**own)
    return found


def _run(
    module: LightningModule,
    data: Any,
    probes: list[Probe],
    steps: int,
    ckpt_path: str | Path | None,
    accelerator: str,
) -> str:
    """Runs a copy and returns the name of its optimizer."""
    with pl.utilities.seed.isolate_rng():
        trainer = rehearse(module, data, [Still(steps), *probes], accelerator=accelerator, ckpt_path=ckpt_path)
    return ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
