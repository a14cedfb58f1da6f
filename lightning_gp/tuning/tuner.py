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
from lightning_gp.contracts import Adapts
from lightning_gp.environments import Environments, chunks_of
from lightning_gp.modules.schedulers import outer_rate
from lightning_gp.theory.learning_rates import critical_inner_lr
from lightning_gp.trainability.objective import rate_of
from lightning_gp.trainability.stream import BatchStream, Data
from lightning_gp.tuning.curvature import outer_bound, support_curvatures, tangent_kernel_rate
from lightning_gp.tuning.suggestion import Suggestion
from lightning_gp.tuning.trials import Trials, Tunable, around, best_trial, only_optimizer, search


class LearningRateTuner:
    """Suggests α and β for a module of the MAML family [T19, section 6].

    1. α_c = 1/λ_max, of the Hessians of the environments' support losses at the given weights, is the centre of a grid.
    2. Short trainings over α with the module's own β. Suggested is the largest α whose loss is within ``tolerance`` of
       the lowest.
    3. Short trainings over β with that α, around the bound of the theory for plain SGD, and around the module's own β
       for other optimizers, to which the theory does not apply. Suggested is the β of the lowest loss.

    The module's own rates are always among those that are tried. All trainings start from the module's weights, see the
    same batches, and run on a copy: module, optimizer state and random state stay as they are. The estimate of [Z22] is
    reported beside, not used.

    Short trainings cannot see what later steps bring: take more ``iterations`` if the suggestion fails in a long run.

    Args:
        iterations: outer steps of each training, at least 4; there are about 20 trainings.
        environments: how many of the first batch to measure the curvature on.
        tolerance: how much worse than the lowest loss (relative) a larger α may be.
        seed: of whatever is random in training, such as dropout.
        progress: called with a line of text after each training; None for silence.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gp import MAML
        >>> from lightning_gp.datamodules import SinusoidDataModule
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = MAML(SinusoidMLP(hidden=(8,)), criterion=torch.nn.functional.mse_loss)
        >>> data = SinusoidDataModule(environments_per_batch=4)
        >>> suggestion = LearningRateTuner(iterations=8, progress=None).tune(module, data)
        >>> suggestion.apply(module)
    """

    def __init__(
        self,
        iterations: int = 200,
        environments: int = 8,
        tolerance: float = 0.02,
        seed: int = 0,
        progress: Callable[[str], None] | None = print,
    ) -> None:
        whole(4, iterations=iterations)
        whole(1, environments=environments)
        whole(0, seed=seed)
        number(tolerance=tolerance)
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance} must be in [0, 1): 0.02 allows a loss 2 % above the lowest.")
        self.iterations, self.environments, self.tolerance = iterations, environments, tolerance
        self.seed, self.progress = seed, progress

    def tune(self, module: Tunable, data: Data, device: str | torch.device | None = None) -> Suggestion:
        """Finds the rates.

        Args:
            module: Tunable, FOMAML, ANIL, BOIL or a subclass.
            data: a DataModule, or batches.
            device: where to compute; None for where the module is.

        Returns:
            The suggestion; ``suggestion.apply(module)`` sets it.

        Raises:
            TypeError: if the module has no inner loop.
            ValueError: if it has several inner rates or an inner optimizer, or several outer optimizers; if its loss is
                not finite on the first batch; or if training diverges at every rate.
        """
        own_inner, own_outer = check_tunable(module)
        device = torch.device(device) if device is not None else next(module.parameters()).device
        stream = BatchStream(data, device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            trials = Trials(_copied(module), stream, self.iterations, self.seed, self.progress)
            first = trials.trainer.first_loss(own_inner)
            if not math.isfinite(first):
                raise ValueError(
                    f"The loss is {first} on the first batch with inner rate {own_inner:g}; give the module finite "
                    "data and weights, and a smaller inner_lr."
                )
            return self._tune(trials, next(stream.first(1))[0], own_inner, own_outer)

    def _tune(self, trial: Trials, batch: Environments, own_inner: float, own_outer: float) -> Suggestion:
        module = trial.module
        few = next(chunks_of(batch, self.environments))
        critical = float(critical_inner_lr(support_curvatures(module, few)))
        optimizer = only_optimizer(module)
        center = critical if math.isfinite(critical) else own_inner or 0.01
        candidates = {*around(center, 4, 4), *([own_inner] if own_inner > 0 else [])}

        outer = own_outer
        for _ in range(4):
            inner_trials = search(lambda rate, outer=outer: trial(rate, outer), candidates)  # type: ignore[misc]
            chosen = best_trial(inner_trials, self.tolerance)
            if chosen is not None:
                break
            outer /= 10
        else:
            raise ValueError(
                f"Training diverges at every inner rate, with outer rates from {own_outer:g} down to "
                f"{10 * outer:.2g}; check the data and the loss."
            )

        bound = None
        if type(optimizer) is torch.optim.SGD and not optimizer.defaults["momentum"]:
            trial(chosen.rate, outer)
            bound = outer_bound(module, trial.trainer.trained, batch, chosen.rate)
        outer_candidates = {*(around(bound, 4, 2) if bound else around(outer, 3, 3)), outer, own_outer}
        outer_trials = search(lambda rate: trial(chosen.rate, rate), outer_candidates)
        best = best_trial(outer_trials)
        assert best is not None  # `outer` is among them
        assert best.loss is not None
        known = {each.rate: each.loss for each in inner_trials} if outer == own_outer else {}
        own_loss = known[own_inner] if own_inner in known else trial(own_inner, own_outer)
        return Suggestion(
            inner_lr=chosen.rate,
            outer_lr=best.rate,
            loss=best.loss,
            own=(own_inner, own_outer, own_loss),
            inner_trials=inner_trials,
            inner_trials_at=outer,
            outer_trials=outer_trials,
            largest_inner_lr=max(each.rate for each in inner_trials if each.loss is not None),
            critical_inner_lr=critical,
            critical_outer_lr=bound,
            optimal_adaptation_lr=tangent_kernel_rate(module, few),
            iterations=self.iterations,
            optimizer=type(optimizer).__name__,
        )


def check_tunable(module: Tunable) -> tuple[float, float]:
    """Refuses what has no single α and β to tune; returns the module's own.

    Raises:
        TypeError: if the module has no inner loop.
        ValueError: if it has several inner rates, an inner optimizer, or several outer optimizers.
    """
    if not isinstance(module, Adapts):
        raise TypeError(
            f"{type(module).__name__} has no inner rate: LearningRateTuner tunes MAML, FOMAML, ANIL, BOIL and their "
            "subclasses. A penalty's weight is no rate that should be as large as training allows; choose it on "
            "validation environments."
        )
    rates = set(rate_of(module).get())
    if len(rates) > 1:
        raise ValueError(
            f"inner_lr has {len(rates)} values, {sorted(rates)}, and the tuner looks for one; give one number, tune, "
            "and scale the values by what it suggests."
        )
    return float(next(iter(rates))), outer_rate(only_optimizer(module))


def _copied(module: Tunable) -> Tunable:
    """A copy without the Trainer, which must not be copied with it."""
    if not isinstance(module, LightningModule):
        return copy.deepcopy(module)
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module)
    finally:
        module._trainer = trainer
