"""``LearningRateTuner``: the guideline of [T19] as a tool, first the largest usable inner rate, then the outer rate.

Sources:
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, section 6.
    [Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from lightning_gp._lightning import LightningModule
from lightning_gp.checks import number, whole
from lightning_gp.contracts import Adapts, Objective
from lightning_gp.environments import Environments
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.schedulers import outer_rate
from lightning_gp.theory.learning_rates import critical_inner_lr
from lightning_gp.trainability.objective import rate_of
from lightning_gp.trainability.stream import BatchStream, Data
from lightning_gp.tuning.curvature import outer_bound, support_curvatures, tangent_kernel_rate
from lightning_gp.tuning.suggestion import Suggestion
from lightning_gp.tuning.trials import Trial, Trials, Tunable, around, best_trial, only_optimizer, search


class LearningRateTuner:
    """Suggests the outer rate β of any ``EnvironmentModule``, and α first for the MAML family [T19, section 6].

    1. α_c = 1/λ_max, of the Hessians of the environments' support losses at the given weights, is the centre of a grid.
    2. Short trainings over α with the module's own β. Suggested is the largest α whose loss is within ``tolerance`` of
       the lowest.
    3. Short trainings over β with that α, around half the critical rate of the module's objective for SGD with or
       without momentum, and around the module's own β for other optimizers, whose second moments a trial makes anew.
       Suggested is the *smallest* β whose loss is within ``tolerance`` of the lowest: the last rate before divergence
       is not worth a gain of a percent.

    Without an inner loop (ERM, penalties, IRMv1, REx) only the third step is taken. Losses are means over seeds; a rate
    at which one of them diverges is out. The module's own rates are always among those that are tried. All trainings
    start from the module's weights, and run on a copy: module, optimizer state and random state stay as they are. The
    estimate of [Z22] is reported beside, not used.

    Short trainings cannot see what later steps bring: take more ``iterations`` if the suggestion fails in a long run.

    Args:
        iterations: outer steps of each training, at least 4; there are about 20 rates, and ``seeds`` trainings of each.
        environments: how many of the first batch to measure the curvature on.
        tolerance: how much worse than the lowest loss (relative) a loss may be.
        seed: the first of the seeds, of whatever is random in training, such as dropout.
        progress: called with a line of text after each rate; None for silence.
        seeds: number of trainings of each rate, each on batches of its own.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gp import MAML
        >>> from lightning_gp.datamodules import SinusoidDataModule
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = MAML(SinusoidMLP(hidden=(8,)), criterion=torch.nn.functional.mse_loss)
        >>> data = SinusoidDataModule(environments_per_batch=4)
        >>> suggestion = LearningRateTuner(iterations=8, progress=None, seeds=1).tune(module, data)
        >>> suggestion.apply(module)
    """

    def __init__(
        self,
        iterations: int = 200,
        environments: int = 8,
        tolerance: float = 0.02,
        seed: int = 0,
        progress: Callable[[str], None] | None = print,
        seeds: int = 2,
    ) -> None:
        whole(4, iterations=iterations)
        whole(1, environments=environments, seeds=seeds)
        whole(0, seed=seed)
        number(tolerance=tolerance)
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance} must be in [0, 1): 0.02 allows a loss 2 % above the lowest.")
        self.iterations, self.environments, self.tolerance = iterations, environments, tolerance
        self.seed, self.seeds, self.progress = seed, seeds, progress

    def tune(self, module: Tunable, data: Data, device: str | torch.device | None = None) -> Suggestion:
        """Finds the rates.

        Args:
            module: any ``EnvironmentModule``.
            data: a DataModule, or batches.
            device: where to compute; None for where the module is.

        Returns:
            The suggestion; ``suggestion.apply(module)`` sets it.

        Raises:
            TypeError: if the module is no objective.
            ValueError: if it has several inner rates or an inner optimizer, or several outer optimizers; if its loss is
                not finite on the first batch; or if training diverges at every rate.
        """
        own_inner, own_outer = check_tunable(module)
        device = torch.device(device) if device is not None else next(module.parameters()).device
        stream = BatchStream(data, device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            seeds = range(self.seed, self.seed + self.seeds)
            varies = own_inner is not None
            trials = Trials(_copied(module), stream, self.iterations, seeds, self.progress, varies)
            first = trials.trainers[0].first_loss(own_inner or 0.0)
            if not math.isfinite(first):
                at = f" with inner rate {own_inner:g}" if varies else ""
                raise ValueError(
                    f"The loss is {first} on the first batch{at}; give the module finite data and weights"
                    f"{', and a smaller inner_lr' if varies else ''}."
                )
            return self._tune(trials, next(stream.first(1))[0], own_inner, own_outer)

    def _tune(self, trial: Trials, batch: Environments, own_inner: float | None, own_outer: float) -> Suggestion:
        module, alpha, outer = trial.module, own_inner or 0.0, own_outer
        few = next(batch.chunks(self.environments))
        inner_trials: tuple[Trial, ...] = ()
        critical = math.inf
        if own_inner is not None:
            assert isinstance(module, Adapts)
            critical = float(critical_inner_lr(support_curvatures(module, few)))
            inner_trials, alpha, outer = self._inner(trial, critical, own_inner, own_outer)
        bound = self._aside(lambda: self._bound(trial, batch, alpha, outer))
        outer_candidates = {*(around(bound / 2, 4, 2) if bound else around(outer, 3, 3)), outer, own_outer}
        outer_trials = search(lambda rate: trial(alpha, rate), outer_candidates)
        best = best_trial(outer_trials, self.tolerance, largest=False)
        if best is None:
            raise ValueError(f"Training diverges at every outer rate down to {min(outer_candidates):.2g}.")
        assert best.loss is not None
        known = {each.rate: each.loss for each in inner_trials} if outer == own_outer else {}
        at_alpha = {each.rate: each.loss for each in outer_trials} if alpha == (own_inner or 0.0) else {}
        known.update({own_inner or 0.0: at_alpha[own_outer]} if own_outer in at_alpha else {})
        own = known[own_inner or 0.0] if (own_inner or 0.0) in known else trial(own_inner or 0.0, own_outer)
        return Suggestion(
            inner_lr=None if own_inner is None else alpha,
            outer_lr=best.rate,
            loss=best.loss,
            own=(own_inner, own_outer, own),
            inner_trials=inner_trials,
            inner_trials_at=outer,
            outer_trials=outer_trials,
            largest_inner_lr=max((each.rate for each in inner_trials if each.loss is not None), default=None),
            critical_inner_lr=None if own_inner is None else critical,
            critical_outer_lr=bound,
            optimal_adaptation_lr=self._aside(lambda: self._kernel(module, few)),
            iterations=self.iterations,
            optimizer=type(only_optimizer(module)).__name__,
        )

    def _inner(
        self, trial: Trials, critical: float, own_inner: float, own_outer: float
    ) -> tuple[tuple[Trial, ...], float, float]:
        """The trials over α, the α to use, and the β at which they ran."""
        center = critical if math.isfinite(critical) else own_inner or 0.01
        candidates = {*around(center, 4, 4), *([own_inner] if own_inner > 0 else [])}
        outer = own_outer
        for _ in range(4):
            trials = search(lambda rate, outer=outer: trial(rate, outer), candidates)  # type: ignore[misc]
            chosen = best_trial(trials, self.tolerance)
            if chosen is not None:
                return trials, chosen.rate, outer
            outer /= 10
        raise ValueError(
            f"Training diverges at every inner rate, with outer rates from {own_outer:g} down to {10 * outer:.2g}; "
            "check the data and the loss."
        )

    def _bound(self, trial: Trials, batch: Environments, alpha: float, outer: float) -> float | None:
        """β_c at the end of a training that does not diverge."""
        for _ in range(4):
            if trial(alpha, outer) is not None:
                return outer_bound(trial.module, trial.trained, batch)
            outer /= 10
        return None

    @staticmethod
    def _kernel(module: Tunable, few: Environments) -> float | None:
        """By the module's criterion; a loss of its own has no kernel here."""
        if not isinstance(module, EnvironmentModule) or not isinstance(module, Adapts) or module.has_own_loss:
            return None
        return tangent_kernel_rate(module, module.criterion, few)

    def _aside(self, number: Callable[[], float | None]) -> float | None:
        """A number that stands beside the suggestion: what goes wrong with it is said, and the trials are not lost."""
        try:
            return number()
        except Exception as error:
            if self.progress is not None:
                self.progress(f"a number beside the trials could not be had: {type(error).__name__}: {error}")
            return None


def check_tunable(module: Tunable) -> tuple[float | None, float]:
    """Refuses what has no single α and β to tune; returns the module's own, None for α where there is no inner loop.

    Raises:
        TypeError: if the module is no objective.
        ValueError: if it has several inner rates, an inner optimizer, or several outer optimizers.
    """
    if not isinstance(module, Objective):
        raise TypeError(
            f"{type(module).__name__} does not say what it minimises: LearningRateTuner tunes any EnvironmentModule "
            "(MAML, ERM, IRMv1, …) or subclass. For any other LightningModule lightning_gp.diagnose(module, data) and "
            "the callback LearningRateBounds say how far its rate is from the edge."
        )
    outer = outer_rate(only_optimizer(module))
    if not isinstance(module, Adapts):
        return None, outer
    if module.inner_loop().direction == "ascent" or module.inner_loop().normalize:
        raise ValueError(
            "The tuner seeks the largest inner rate at which training improves, for inner descent; the rate of "
            "an ascent, and a radius (normalize), say how much to guard against: choose it by validation."
        )
    rates = set(rate_of(module).get())
    if len(rates) > 1:
        raise ValueError(
            f"inner_lr has {len(rates)} values, {sorted(rates)}, and the tuner looks for one; give one number, tune, "
            "and scale the values by what it suggests."
        )
    return float(next(iter(rates))), outer


def _copied(module: Tunable) -> Tunable:
    """A copy without the Trainer, which must not be copied with it."""
    if not isinstance(module, LightningModule):
        return copy.deepcopy(module)
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module)
    finally:
        module._trainer = trainer
