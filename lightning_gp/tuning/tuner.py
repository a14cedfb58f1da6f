"""``LearningRateTuner``: the guideline of [T19] as a tool, first the largest usable inner rate, then the outer rate.

Sources:
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, section 6.
    [Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_gp._lightning import LightningModule
from lightning_gp.checks import number, whole
from lightning_gp.contracts import Adapts, Objective
from lightning_gp.environments import Environments
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.theory.learning_rates import critical_inner_lr
from lightning_gp.trainability.rehearsal import copied
from lightning_gp.trainability.stream import BatchStream, Data
from lightning_gp.tuning.curvature import support_curvatures, tangent_kernel_rate
from lightning_gp.tuning.module_trials import ModuleTrials
from lightning_gp.tuning.objective_trials import ObjectiveTrials
from lightning_gp.tuning.suggestion import Suggestion
from lightning_gp.tuning.trials import Trial, Trials, around, best_trial, search
from lightning_gp.tuning.tunable import Tunable, check_tunable


class LearningRateTuner:
    """Suggests the outer rate β of any LightningModule, and α first for the MAML family [T19, section 6].

    1. α_c = 1/λ_max, of the Hessians of the environments' support losses at the given weights, is the centre of a grid.
    2. Short trainings over α with the module's own β. Suggested is the largest α whose loss is within ``tolerance`` of
       the lowest.
    3. Short trainings over β with that α, around half the critical rate of the module's objective for SGD with or
       without momentum, and around the module's own β for other optimizers, whose second moments a trial makes anew.
       Suggested is the *smallest* β whose loss is within ``tolerance`` of the lowest: the last rate before divergence
       is not worth a gain of a percent.

    Without an inner loop (ERM, penalties, IRMv1, REx, any module that is not of this package) only the third step is
    taken. Losses are means over seeds; a rate at which one of them diverges is out. The module's own rates are always
    among those that are tried. All trainings start from the module's weights, and run on a copy: module, optimizer
    state and random state stay as they are. The estimate of [Z22] is reported beside, not used.

    A module that is not of this package is trained by its own ``training_step`` in a Trainer, with automatic or manual
    optimization and any optimizer; the loss is what the step returns. Schedulers rest: a trial has one rate, and the
    module's own is that behind a warm-up, or the peak of a cycle. Gradients are not clipped, precision is full.

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

    def tune(
        self, module: Tunable | LightningModule, data: Data | Any, device: str | torch.device | None = None
    ) -> Suggestion:
        """Finds the rates.

        Args:
            module: any LightningModule.
            data: a DataModule, or batches; for a module that is not of this package, what ``Trainer.fit`` takes.
            device: where to compute; None for where the module is.

        Returns:
            The suggestion; ``suggestion.apply(module)`` sets it.

        Raises:
            TypeError: if it is no LightningModule.
            ValueError: if it has several inner rates or an inner optimizer, or several outer optimizers; if its loss is
                not finite on the first batch; or if training diverges at every rate.
        """
        device = torch.device(device) if device is not None else _device(module)
        seeds = range(self.seed, self.seed + self.seeds)
        if not isinstance(module, Objective):
            return self._any_module(module, data, device, seeds)
        own_inner, own_outer = check_tunable(module)
        stream = BatchStream(data, device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            own = copied(module)
            trials = ObjectiveTrials(own, stream, self.iterations, seeds, self.progress, own_inner is not None)
            _check_first(trials, own_inner)
            if own_inner is None:
                return self._outer(trials, own_outer)
            few = next(next(stream.first(1))[0].chunks(self.environments))
            return self._both(trials, own, few, own_inner, own_outer)

    def _any_module(self, module: object, data: Any, device: torch.device, seeds: Sequence[int]) -> Suggestion:
        """By the module's own training loop."""
        if not isinstance(module, LightningModule):
            raise TypeError(
                f"LearningRateTuner tunes a LightningModule, any that has training_step and configure_optimizers; got "
                f"{type(module).__name__}."
            )
        trials = ModuleTrials(module, data, device, self.iterations, seeds, self.progress)
        _check_first(trials, None)
        return self._outer(trials, trials.own_rate)

    def _both(
        self, trial: Trials, module: Tunable, few: Environments, own_inner: float, own_outer: float
    ) -> Suggestion:
        """First α, then β."""
        assert isinstance(module, Adapts)
        critical = self._aside(lambda: float(critical_inner_lr(support_curvatures(module, few))))
        inner = self._inner(trial, critical, own_inner, own_outer)
        found = self._outer(trial, own_outer, own_inner, *inner)
        kernel = self._aside(lambda: self._kernel(module, few))
        return replace(found, critical_inner_lr=critical, optimal_adaptation_lr=kernel)

    def _outer(
        self,
        trial: Trials,
        own_outer: float,
        own_inner: float | None = None,
        inner_trials: tuple[Trial, ...] = (),
        alpha: float = 0.0,
        outer: float | None = None,
    ) -> Suggestion:
        """β at the inner rate ``alpha``, which was found at the outer rate ``outer``."""
        outer = own_outer if outer is None else outer
        bound = self._aside(lambda: trial.bound(alpha, outer))
        candidates = {*(around(bound / 2, 4, 2) if bound else around(outer, 3, 3)), outer, own_outer}
        outer_trials = search(lambda rate: trial(alpha, rate), candidates)
        best = best_trial(outer_trials, self.tolerance, largest=False)
        if best is None:
            raise ValueError(f"Training diverges at every outer rate down to {min(candidates):.2g}.")
        assert best.loss is not None
        known = {each.rate: each.loss for each in inner_trials} if outer == own_outer else {}
        if alpha == (own_inner or 0.0):
            known[alpha] = next(each.loss for each in outer_trials if each.rate == own_outer)
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
            critical_inner_lr=None,
            critical_outer_lr=bound,
            optimal_adaptation_lr=None,
            iterations=self.iterations,
            optimizer=trial.optimizer,
        )

    def _inner(
        self, trial: Trials, critical: float | None, own_inner: float, own_outer: float
    ) -> tuple[tuple[Trial, ...], float, float]:
        """The trials over α, the α to use, and the β at which they ran."""
        center = critical if critical is not None and math.isfinite(critical) else own_inner or 0.01
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


def _check_first(trials: Trials, own_inner: float | None) -> None:
    """Refuses a loss that is not finite before training."""
    first = trials.first_loss(own_inner or 0.0)
    if not math.isfinite(first):
        at = "" if own_inner is None else f" with inner rate {own_inner:g}"
        less = "" if own_inner is None else ", and a smaller inner_lr"
        raise ValueError(f"The loss is {first} on the first batch{at}; give the module finite data and weights{less}.")


def _device(module: object) -> torch.device:
    """Where a module's parameters are."""
    found = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if found is None else found.device
