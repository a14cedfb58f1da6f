"""``LearningRateTuner``: the guideline of [T19] as a tool, first the largest usable inner rate, then the outer rate.

Sources:
    [T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, section 6.
    [Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gp.environments import Environments, chunks_of
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.theory.learning_rates import Kind, critical_inner_lr, critical_outer_lr
from lightning_gp.theory.optimal_adaptation import network_adaptation_lr
from lightning_gp.trainability.objective import rate_of
from lightning_gp.trainability.probing import Prober, around, best_run, only_optimizer, outer_rate, search
from lightning_gp.trainability.stream import BatchStream, Data
from lightning_gp.trainability.suggestion import Suggestion
from lightning_gp.types import Parameters

MAX_ROWS = 500
"""Outputs of an environment's support set beyond which its tangent kernel is left out."""


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

    Short trainings cannot see what later steps bring: take more ``steps`` if the suggestion fails in a long run.

    Args:
        steps: outer steps of each training, at least 4; there are about 20 trainings.
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
        >>> suggestion = LearningRateTuner(steps=8, progress=None).tune(module, data)
        >>> suggestion.apply(module)
    """

    def __init__(
        self,
        steps: int = 200,
        environments: int = 8,
        tolerance: float = 0.02,
        seed: int = 0,
        progress: Callable[[str], None] | None = print,
    ) -> None:
        if steps < 4:
            raise ValueError(f"steps={steps} is too few to tell rates apart; use at least 4.")
        if environments < 1:
            raise ValueError(f"environments={environments} must be at least 1.")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance} must be in [0, 1): 0.02 allows a loss 2 % above the lowest.")
        self.steps, self.environments, self.tolerance = steps, environments, tolerance
        self.seed, self.progress = seed, progress

    def tune(self, module: Any, data: Data, device: str | torch.device | None = None) -> Suggestion:
        """Finds the rates.

        Args:
            module: MAML, FOMAML, ANIL, BOIL or a subclass.
            data: a DataModule, or batches.
            device: where to compute; None for where the module is.

        Returns:
            The suggestion; ``suggestion.apply(module)`` sets it.

        Raises:
            TypeError: if the module is not of the MAML family.
            ValueError: if it has several inner rates or an inner optimizer, or several outer optimizers; if its loss is
                not finite on the first batch; or if training diverges at every rate.
        """
        own_inner, own_outer = check_tunable(module)
        device = torch.device(device) if device is not None else next(module.parameters()).device
        stream = BatchStream(data, device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            probe = Prober(_copied(module), stream, self.steps, self.seed, self.progress)
            first = probe.trainer.first_loss(own_inner)
            if not math.isfinite(first):
                raise ValueError(
                    f"The loss is {first} on the first batch with inner rate {own_inner:g}; give the module finite "
                    "data and weights, and a smaller inner_lr."
                )
            return self._tune(probe, next(stream.first(1))[0], own_inner, own_outer)

    def _tune(self, probe: Prober, batch: Environments, own_inner: float, own_outer: float) -> Suggestion:
        module = probe.trainer.objective
        few = next(chunks_of(batch, self.environments))
        critical = float(critical_inner_lr(support_curvatures(module, few)))
        optimizer = only_optimizer(module)
        center = critical if math.isfinite(critical) else own_inner or 0.01
        candidates = {*around(center, 4, 4), *([own_inner] if own_inner > 0 else [])}

        outer = own_outer
        for _ in range(4):
            inner_runs = search(lambda rate, outer=outer: probe(rate, outer), candidates)  # type: ignore[misc]
            chosen = best_run(inner_runs, self.tolerance)
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
            probe(chosen.rate, outer)
            bound = outer_bound(module, probe.trainer.trained, batch, chosen.rate)
        outer_candidates = {*(around(bound, 4, 2) if bound else around(outer, 3, 3)), outer, own_outer}
        outer_runs = search(lambda rate: probe(chosen.rate, rate), outer_candidates)
        best = best_run(outer_runs)
        assert best is not None  # `outer` is among them
        assert best.loss is not None
        known = {run.rate: run.loss for run in inner_runs} if outer == own_outer else {}
        own_loss = known[own_inner] if own_inner in known else probe(own_inner, own_outer)
        return Suggestion(
            inner_lr=chosen.rate,
            outer_lr=best.rate,
            loss=best.loss,
            own=(own_inner, own_outer, own_loss),
            inner_runs=inner_runs,
            inner_runs_at=outer,
            outer_runs=outer_runs,
            largest_inner_lr=max(run.rate for run in inner_runs if run.loss is not None),
            critical_inner_lr=critical,
            critical_outer_lr=bound,
            optimal_adaptation_lr=tangent_kernel_rate(module, few),
            steps=self.steps,
            optimizer=type(optimizer).__name__,
        )


def check_tunable(module: Any) -> tuple[float, float]:
    """Refuses what has no single α and β to tune; returns the module's own.

    Raises:
        TypeError: if the module is not of the MAML family.
        ValueError: if it has several inner rates, an inner optimizer, or several outer optimizers.
    """
    if not hasattr(module, "inner_rates"):
        raise TypeError(
            f"{type(module).__name__} has no inner rate: LearningRateTuner tunes MAML, FOMAML, ANIL, BOIL and their "
            "subclasses. A penalty's weight is no rate that should be as large as training allows; choose it on "
            "validation environments."
        )
    rate_of(module)
    rates = set(module.inner_rates.initial.values())
    if len(rates) > 1:
        raise ValueError(
            f"inner_lr has {len(rates)} values, {sorted(rates)}, and the tuner looks for one; give one number, tune, "
            "and scale the values by what it suggests."
        )
    return float(next(iter(rates))), outer_rate(only_optimizer(module))


def support_curvatures(module: Any, environments: Environments) -> Tensor:
    """λ_max of each environment's support loss by the adapted parameters, (E,), float64."""
    shared, adapted = _split(module)

    def largest(one: Environments) -> Tensor:
        def loss(parameters: Parameters) -> Tensor:
            value: Tensor = module.environment_losses({**shared, **parameters}, one, "support")
            return value.mean()

        return hessian_eigenvalues(loss, adapted, k=1).values[0]

    return torch.stack([largest(one) for one in chunks_of(environments, 1)])


def outer_bound(module: Any, trained: list[Tensor], batch: Environments, inner_lr: float) -> float | None:
    """β_c(α) by the theory, from the two largest curvatures of the mean query loss at trained weights; None for none.

    Negative eigenvalues are left out of account, as in ``callbacks.LearningRateBounds``. Beyond α_c the simplified
    theory has no bound; then that of α = 0 is given.
    """
    names = [name for name, value in module.network_parameters().items() if value.requires_grad]
    trained_by_id = dict(zip(map(id, module.trained_parameters()), trained, strict=True))
    own = module.network_parameters()
    parameters = {name: trained_by_id[id(own[name])] for name in names}
    frozen = {name: value.detach() for name, value in own.items() if name not in parameters}

    def loss(parameters: Parameters) -> Tensor:
        value: Tensor = module.environment_losses({**frozen, **parameters}, batch, "query")
        return value.mean()

    eigenvalues = hessian_eigenvalues(loss, parameters, k=min(2, sum(v.numel() for v in parameters.values()))).values
    if not bool(eigenvalues.isfinite().all()):
        return None
    kind: Kind = "fomaml" if module.first_order else "maml"
    bounds = [
        float(critical_outer_lr(eigenvalues.clamp(min=0), rate, kind, module.inner_steps)) for rate in (inner_lr, 0.0)
    ]
    return next((bound for bound in bounds if 0 < bound < math.inf), None)


def tangent_kernel_rate(module: Any, environments: Environments) -> float | None:
    """``theory.network_adaptation_lr`` on the support sets; None where the kernel would be too large."""
    shared, adapted = _split(module)
    x, y = environments.support
    with torch.no_grad():
        rows = module.predict({**shared, **adapted}, x[0]).numel()
    if rows > MAX_ROWS:
        return None
    value = network_adaptation_lr(
        lambda parameters, inputs: module.predict({**shared, **parameters}, inputs), module.criterion, adapted, x, y
    )
    return float(value)


def _split(module: Any) -> tuple[Parameters, Parameters]:
    """The parameters that the inner loop leaves alone, and those that it adapts, detached."""
    parameters = {name: value.detach() for name, value in module.network_parameters().items()}
    adapted = {name: parameters[name] for name in module.adapted}
    return {name: value for name, value in parameters.items() if name not in adapted}, adapted


def _copied(module: Any) -> Any:
    """A copy without the Trainer, which must not be copied with it."""
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module)
    finally:
        module._trainer = trainer
