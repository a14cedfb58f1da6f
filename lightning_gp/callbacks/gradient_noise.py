"""``GradientNoise``: how much gradients scatter, and how many environments or examples a batch can use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from lightning_gp import checks
from lightning_gp._lightning import LightningModule
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.batches import parts_of
from lightning_gp.callbacks.groups import Grouping, check_groups, grouped
from lightning_gp.callbacks.losses import AnyLoss, Indexed, Piece, Skipped
from lightning_gp.callbacks.measurement import Measurement, Report, check_as_many
from lightning_gp.callbacks.shards import Parts, local
from lightning_gp.contracts import Key
from lightning_gp.environments import count_of
from lightning_gp.functional.gradients import gradient_norm
from lightning_gp.functional.processes import Ranks, sum_over_processes
from lightning_gp.types import Parameters


class Noise(NamedTuple):
    """Unbiased estimates of the trace of a covariance and of the square of a mean.

    Attributes:
        variance: tr Σ.
        signal: ‖G‖².
    """

    variance: float
    signal: float

    @property
    def scale(self) -> float:
        """B = tr Σ / ‖G‖²; infinite if the estimate of ‖G‖² is not positive."""
        return math.inf if self.signal <= 0 else self.variance / self.signal

    @property
    def ratio(self) -> float:
        """‖G‖² / tr Σ."""
        if self.variance == 0:
            return math.nan if self.signal == 0 else math.inf
        return self.signal / self.variance


class GradientNoise(Probe):
    """The simple noise scale: beyond so many environments (or examples) a larger batch hardly makes a better gradient.

    Of m gradients g_i on b_i units each, with N = Σ b_i and the mean ḡ = Σ b_i g_i / N, the unbiased estimates are

        tr Σ = Σ b_i ‖g_i − ḡ‖² / (m − 1),    ‖G‖² = ‖ḡ‖² − tr Σ / N,

    G being the true gradient and Σ the covariance of the gradient of one unit; the noise scale is B = tr Σ / ‖G‖², the
    signal-to-noise ratio its inverse (S. McCandlish et al., "An empirical model of large-batch training", 2018,
    arXiv 1812.06162 [M18], section 2.2 and appendix A.1). A batch of B units has as much noise as signal.

    - Modules with ``environment_losses`` (or a ``loss_fn`` of one loss per environment): a unit is an environment, g_i
      its gradient at the unadapted parameters on the query set; b_i = 1, m = N the number of environments. For MAML
      that is not the gradient of training, which is taken after adaptation.
    - Any other module: a unit is an example. Each batch of the probe batch is cut into ``parts``, g_i is the gradient
      of the ``training_step`` (or ``loss_fn``) on a part of b_i examples. The loss must be a mean over examples.
      Dropout is part of the noise; batch normalisation sees the statistics of the part.

    Sums are over the environments or parts of all processes. A ratio of unbiased estimates is not unbiased: with few
    gradients B is rough; a larger ``probe_size``, or more ``parts``, makes it better.

    {keys}

    They are NaN where a gradient is not finite.

    Cost: one forward and backward pass of the probe batch, and memory for m gradients.

    Args:
        parts: how many parts each batch of the probe batch is cut into (on each process; single examples, if there are
            fewer), for modules without environments. 1 takes whole batches: ``probe_size`` must then span several.
        groups: also the ratio of groups of parameters: number of leading parts of a parameter's name that make its
            group (1: the outermost submodules), or a function from names to groups.
        **kwargs: see ``Probe``.

    Raises:
        TypeError: if ``parts`` is no whole number.
        ValueError: if ``parts`` or ``groups`` is out of range. Before the first optimizer step (where that can be known
            by then, else at the first measurement): if the probe batch has a single environment or part, or a batch
            cannot be cut.
    """

    keys = (
        Key("gradients/noise_scale", "[0, ∞]", "B, in environments or examples; ∞ if ``gradients/signal`` is not > 0"),
        Key("gradients/variance", "[0, ∞)", "tr Σ, of the gradient of one environment or example"),
        Key("gradients/signal", "(−∞, ∞)", "‖G‖², unbiased, so that it may be negative"),
        Key("gradients/snr", "(−1, ∞]", "‖G‖² / tr Σ"),
        Key("gradients/snr/<group>", "(−1, ∞]", "the same for a group of parameters, with ``groups``"),
    )

    def __init__(self, parts: int = 4, groups: Grouping | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.whole(1, parts=parts)
        check_groups(groups)
        self.parts, self.groups = parts, groups

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """It needs nothing but gradients."""
        return True

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One gradient, that of the smallest part, and how many there will be."""
        rows = len(next(iter(loss.gradients(loss.parameters(), piece).values())))
        if loss.scalar:
            assert isinstance(piece, Indexed)
            smallest = parts_of(piece.batch, self.parts)[-1]
            loss.gradients(loss.parameters(), piece._replace(batch=smallest))
        kept = self.batch.batches
        if loss.by_environment:
            count = sum(count_of(batch) for batch in kept)
        else:
            count = sum(len(parts_of(batch, self.parts)) if loss.scalar else rows for batch in kept)
        trainer = loss.module.trainer
        last = self.batch.complete or self.every_n_steps == 1 or trainer.is_last_batch
        if last and count * (1 if loss.shares_examples else self.batch.world) < 2:
            raise _too_few(loss)

    def measure(self, measurement: Measurement) -> Report:
        """Variance and signal on the probe batch."""
        stacks, weights = self._gradients(measurement)
        # Of shared environments, and under shards, every process has the gradients of all.
        everywhere = measurement.shared or measurement.spread
        ranks = measurement.ranks.alone() if everywhere else measurement.ranks
        (count,) = ranks.totals(len(weights))
        if count < 2:
            raise _too_few(measurement.loss)
        found = noise(stacks, weights, measurement.loss.parameters(), ranks)
        total = _sum(found, found)
        values = {
            "gradients/noise_scale": total.scale,
            "gradients/variance": total.variance,
            "gradients/signal": total.signal,
            "gradients/snr": total.ratio,
        }
        for group, names in grouped(found, self.groups).items():
            values[f"gradients/snr/{group}"] = _sum(found, names).ratio
        return Report(values)

    def _gradients(self, measurement: Measurement) -> tuple[list[Parameters], list[float]]:
        """Stacks (E, *shape) of this process, and the weight of each of their gradients."""
        loss = measurement.loss
        stacks = [] if loss.scalar else list(measurement.gradients())
        if not loss.scalar:
            return stacks, [1.0] * sum(len(next(iter(stack.values()))) for stack in stacks)
        stacks, weights = [], []
        parts = [
            piece._replace(batch=each) for piece in measurement.pieces for each in parts_of(piece.batch, self.parts)
        ]
        if measurement.spread:
            check_as_many(measurement.ranks, len(parts))
        # Under shards a part is that of all processes, which have to run the module together.
        ranks = measurement.ranks if measurement.spread else measurement.ranks.alone()
        for part in parts:
            alone = Measurement.of_pieces(loss, [part], ranks, measurement.again)
            with suppress(Skipped):
                stacks += alone.gradients()
                weights.append(alone.total)
        return stacks, weights


def noise(
    stacks: Sequence[Parameters], weights: Sequence[float], parameters: Parameters, ranks: Ranks
) -> dict[str, Noise]:
    """Of each parameter tr Σ = Σ b_i ‖g_i − ḡ‖² / (m − 1) and ‖G‖² = ‖ḡ‖² − tr Σ / N, over all processes.

    Args:
        stacks: gradients g_i of this process, tensors (E, *shape); there may be none.
        weights: b_i of each of them.
        parameters: what they are gradients of, tensors (*shape).
        ranks: sums over processes, in which there are at least two gradients.
    """
    count, total = ranks.totals(len(weights), sum(weights))
    weight = torch.tensor(weights, dtype=ranks.dtype, device=ranks.device)
    names = [name for name, value in parameters.items() if value.numel()]  # of all processes
    scatters, lengths = [], []
    for name in names:
        value = local(parameters[name]).detach()
        rows = torch.cat([value.new_empty(0, *value.shape), *(stack[name] for stack in stacks)])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        own = weight.to(rows.real.dtype).reshape(-1, *[1] * value.ndim)
        mean = ranks.sum((own * rows).sum(0, keepdim=True)) / total
        scatters.append((weight * gradient_norm({name: rows - mean}).to(weight).square()).sum())
        lengths.append(gradient_norm({name: mean}).to(weight).square().sum())
    scatter, length = torch.stack(scatters), torch.stack(lengths)
    if any(isinstance(stack, Parts) for stack in stacks):
        scatter, length = sum_over_processes(torch.stack([scatter, length]))
    variances = ranks.sum(scatter) / (count - 1)
    signals = length - variances / total
    return {
        name: Noise(variance, signal)
        for name, variance, signal in zip(names, variances.tolist(), signals.tolist(), strict=True)
    }


def _sum(found: Mapping[str, Noise], names: Iterable[str]) -> Noise:
    """Squares of lengths add up over parameters."""
    chosen = [found[name] for name in names]
    return Noise(sum(each.variance for each in chosen), sum(each.signal for each in chosen))


def _too_few(loss: AnyLoss) -> ValueError:
    """What is said where there is a single gradient."""
    if loss.scalar:
        mend = (
            "Take parts=2 or more and batches of at least two examples, or a probe_size of several batches of the "
            "epoch (with every_n_steps, of those before the first measurement)."
        )
    else:
        mend = "Give the batches at least two environments, and probe_size at least 2."
    return ValueError(
        f"GradientNoise measures how gradients scatter, but the probe batch of {type(loss.module).__name__} gives a "
        f"single one. {mend}"
    )
