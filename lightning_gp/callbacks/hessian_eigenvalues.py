"""``HessianEigenvalues``: how curved the loss is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.curvatures import (
    block_curvatures,
    check_coupled,
    couples,
    environment_statistics,
    leading_pairs,
    optimizer_of,
    values_of,
)
from lightning_gp.callbacks.differences import measured_by_differences
from lightning_gp.callbacks.eigenvalue_checks import (
    check_arguments,
    check_combination,
    check_environments,
    check_evaluation,
    check_k,
    check_product,
)
from lightning_gp.callbacks.episodes import EpisodeProbe
from lightning_gp.callbacks.groups import Grouping, check_groups, grouped
from lightning_gp.callbacks.losses import AnyLoss, Piece
from lightning_gp.callbacks.measurement import Measurement, Report
from lightning_gp.callbacks.probe_batch import saved_vector
from lightning_gp.callbacks.spectrum import add_spectrum
from lightning_gp.contracts import Key
from lightning_gp.functional.hessian_product import hessian_vector_product
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.starts import warm_start
from lightning_gp.plots import require_matplotlib
from lightning_gp.theory.optimizers import check_known
from lightning_gp.types import Split


class HessianEigenvalues(EpisodeProbe):
    """The k largest (algebraic) eigenvalues of ∇²L(θ), by Lanczos on Hessian-vector products.

    L is the mean loss over the environments of the probe batch at the unadapted parameters (of ``split``), or with
    ``objective="training"`` what training minimises on it: adapted, with penalties. For modules without environments
    both are the module's loss. With ``preconditioned=True`` they are those of P^{-1/2}(∇²L + W)P^{-1/2}, with the
    preconditioner P and the coupled weight decay W of the Trainer's optimizer (``theory.optimizers``): what must stay
    below the optimizer's critical curvature.

    Each search ends only when, as far as a random vector can tell, no eigenvalue above the last one is missing, copies
    of repeated eigenvalues included. From the second on it starts from the last eigenvectors, which saves products
    (``warm_start=False`` searches anew each time). The vectors are saved in checkpoints as one (the blend
    of them that a warm start uses) of up to 64 MB; beyond that a resumed run starts cold once.

    {keys}

    All are NaN if the loss or its derivatives are not finite. The random vectors are the same at every measurement.

    Cost: 15 to 30 products for two eigenvalues to 1e-3, from the second search on somewhat fewer, each as long as two
    backward passes of the probe batch, whose gradient graph is kept in memory meanwhile. A smaller ``probe_size`` saves
    both. ``trace`` adds 30 products, ``density`` 120 and a basis of 30 vectors; ``per_environment`` and ``groups`` a
    search for one eigenvalue in each environment and group.

    Attention is computed by torch's ``MATH`` kernel, whose (tokens, tokens) weights of every head stay in memory, and
    compiled code as it is written.

    ``products="differences"`` takes gradients alone, H v ≈ (∇L(θ + h v) − ∇L(θ − h v)) / 2h with h = 0.05 ‖∇L‖/λ_1, for
    sharded modules (FSDP2) and kernels without a double backward. Differences of a loss with kinks (ReLU) see curvature
    that derivatives do not have, and no step fits all directions. So each pair is measured again, at h and at h/2, and
    is NaN where these disagree; the keys are others, so that none is taken for an exact one. On smooth networks it
    agrees with the exact value to ``tol``; it costs two gradients per product, and no graph is kept.

    With ``episodes=N`` also of the loss of each of N episodes in ``trainer.validate`` and ``trainer.test``, by a search
    of its own: see ``EpisodeProbe``. The mean of ``curvature/converged`` is then the share of converged searches.

    Args:
        k: number of eigenvalues; the learning-rate theory needs the two largest.
        objective: ``"loss"`` or ``"training"``, see above.
        tol: relative error allowed in each eigenvalue.
        preconditioned: see above; with one optimizer, of a kind that ``theory.optimizers`` knows.
        per_environment: also the largest eigenvalue of each environment's own loss, in as many searches; the bounds of
            several environments are made of them (S. Takagi et al., 2019, Eq. 23-26).
        split: ``"query"`` or ``"support"``, the sets whose losses L and those of ``per_environment`` are.
        groups: also the largest eigenvalue of each diagonal block of ∇²L: number of leading parts of a parameter's name
            that make its group (1: the outermost submodules), or a function from names to groups.
        trace: also estimate the trace.
        density: draw the spectral density once per epoch of training (needs matplotlib).
        warm_start: start from the last eigenvectors, see above.
        products: ``"exact"`` or ``"differences"``, see above; the latter with ``objective="loss"`` alone, and without
            ``preconditioned``, ``per_environment``, ``groups``, ``trace`` and ``density``.
        max_products: products allowed per search; None for the default of ``functional.hessian_eigenvalues``.
        **kwargs: see ``EpisodeProbe`` and ``Probe``.

    Raises:
        ValueError: if an argument is out of range; in ``setup``, if k exceeds the number of trainable parameters, or
            there are no environments for ``per_environment``; before the first optimizer step, if the training
            objective of a first-order algorithm is asked for (its update is no gradient, so that it has no Hessian:
            ``LearningRateBounds`` measures its Jacobian), or the optimizer is not known.
        RuntimeError: before the first optimizer step, if an operation in the loss has no double backward.
    """

    keys = (
        Key("curvature/eigenvalue_<i>", "(−∞, ∞)", "λ_i, i = 1 … k, largest first"),
        Key("curvature/residual_<i>", "[0, ∞)", "‖H v_i − λ_i v_i‖: some eigenvalue is within this distance of λ_i"),
        Key("curvature/converged", "{0, 1}", "1 where every value is as good as ``tol`` asks, else 0"),
        Key("curvature/products", "[1, ``max_products``]", "Hessian-vector products of this search"),
        Key("curvature/eigenvalue_1/<group>", "(−∞, ∞)", "of the block of a group of parameters, with ``groups``"),
        Key("curvature/environment_max", "(−∞, ∞)", "max_τ λ_max(∇²L_τ), with ``per_environment=True``"),
        Key("curvature/environment_mean", "(−∞, ∞)", "the mean of λ_max over environments, likewise"),
        Key("curvature/environment_std", "[0, ∞)", "its standard deviation over environments, likewise"),
        Key("curvature/trace", "(−∞, ∞)", "tr ∇²L(θ), estimated by Hutch++, with ``trace=True``"),
        Key("curvature/trace_standard_error", "[0, ∞)", "of that estimate"),
        Key("differences/eigenvalue_<i>", "(−∞, ∞)", 'λ_i with ``products="differences"``; NaN where it disagrees'),
        Key("differences/residual_<i>", "[0, ∞)", "the largest disagreement of H v_i at h, at h/2, and λ_i v_i"),
        Key("differences/converged", "{0, 1}", "1 where every value is a number and as good as ``tol`` asks, else 0"),
        Key("differences/products", "[1, ∞)", "differences taken, two gradients each"),
        Key("differences/step", "(0, ∞)", "h, the length of the displacement"),
        Key("curvature/spectral_density", "", "picture, with ``density=True``: by stochastic Lanczos quadrature"),
    )

    keeps_graph = True

    def __init__(
        self,
        k: int = 2,
        objective: Literal["loss", "training"] = "loss",
        tol: float = 1e-3,
        preconditioned: bool = False,
        per_environment: bool = False,
        split: Split = "query",
        groups: Grouping | None = None,
        trace: bool = False,
        density: bool = False,
        warm_start: bool = True,
        products: Literal["exact", "differences"] = "exact",
        max_products: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_arguments(k, objective, tol, split, products, max_products)
        check_groups(groups)
        extras = {"per_environment": per_environment, "groups": groups is not None, "trace": trace, "density": density}
        check_combination(objective, split, products, preconditioned, self.episodes, extras)
        if density:
            require_matplotlib()
        self.k, self.objective, self.split, self.products = k, objective, split, products
        self.tol, self.max_products, self.warm_start = tol, max_products, warm_start
        self.preconditioned, self.per_environment, self.groups = preconditioned, per_environment, groups
        self.trace, self.density = trace, density

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """By differences of gradients."""
        return self.products == "differences"

    def begin(self) -> None:
        """Also forgets what was found."""
        super().begin()
        self.eigenvalues: Tensor | None = None
        self._start: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also compares k with the number of parameters."""
        super().setup(trainer, pl_module, stage)
        if self.evaluation_loss is not None:
            check_evaluation(self.evaluation_loss, self.objective, self.k)
        if stage != "fit" or self.loss is None:
            return
        if self.per_environment:
            check_environments(self.loss)
        if not any(isinstance(each, torch.nn.UninitializedParameter) for each in self.loss.parameters().values()):
            check_k(self.loss, self.k)

    def whole_batches(self, loss: AnyLoss) -> bool:
        """A coupled training objective is that of a whole batch."""
        return self.objective == "training" and couples(loss)

    def check(self, loss: AnyLoss, piece: Piece) -> None:
        """One product, and k again, for parameters that are made by the first forward pass."""
        check_k(loss, self.k)
        if self.products == "differences":
            super().check(loss, piece)
            return
        function = loss.objectives if self.objective == "training" else partial(loss.losses, split=self.split)
        check_product(loss, lambda theta: function(theta, piece).mean())
        if self.objective == "training":
            check_coupled(loss, self.batch)
        if self.preconditioned:
            check_known(optimizer_of(loss.module))

    def measure(self, measurement: Measurement) -> Report:
        """The eigenvalues of the mean over all environments."""
        if self.products == "differences":
            return self._by_differences(measurement)
        parameters = measurement.loss.parameters()
        size = sum(parameter.numel() for parameter in parameters.values())
        loss = partial(measurement.mean_loss, training=self.objective == "training", split=self.split)
        with plain_kernels(second_order=True):
            start = self._start if self._start is not None and self._start.numel() == size else None
            pairs = leading_pairs(
                loss,
                measurement,
                self.preconditioned,
                k=self.k,
                tol=self.tol,
                max_products=self.max_products,
                start=start,
            )
        self._found(pairs.values, pairs.vectors)
        report = Report(values_of("curvature", pairs))
        with plain_kernels(second_order=True):
            blocks = grouped(parameters, self.groups)
            report.values.update(block_curvatures(loss, parameters, blocks, self.tol, measurement.ranks.sum))
            if self.per_environment:
                report.values.update(environment_statistics(measurement, self.split, self.tol))
        if self.trace or self.density:
            with plain_kernels(second_order=True):
                product = hessian_vector_product(loss, parameters, reduce=measurement.ranks.sum)
                add_spectrum(report, product, self.trace, self.density)
        return report

    def measure_episode(self, measurement: Measurement) -> Mapping[str, float]:
        """Without what is only drawn, and statistics over environments, of which there is one."""
        self.density = self.per_environment = False
        return super().measure_episode(measurement)

    def _by_differences(self, measurement: Measurement) -> Report:
        found = measured_by_differences(measurement, self.k, self.tol, self.split, self._start, self.max_products)
        self._found(found.values, found.vectors)
        return Report({**values_of("differences", found), "differences/step": found.step})

    def _found(self, values: Tensor, vectors: Tensor) -> None:
        self.eigenvalues = values
        if self.warm_start and bool(vectors.isfinite().all()):
            self._start = warm_start(vectors)

    def state_dict(self) -> dict[str, Any]:
        """The probe batch and the start of the next search."""
        # of shards, one process's part would be saved for all
        return {**super().state_dict(), "start": saved_vector(self._start) if self.products == "exact" else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        super().load_state_dict(state_dict)
        self._start = state_dict.get("start") if self.warm_start else None
