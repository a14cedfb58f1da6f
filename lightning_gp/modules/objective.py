"""What an ``EnvironmentModule`` minimises: the loss of an environment, and the terms that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.held_constant import recording_constants
from lightning_gp.modules.aggregation import Aggregate, weights_of, with_update
from lightning_gp.modules.outputs import check_shapes, tensor_of
from lightning_gp.modules.resumable import Resumable
from lightning_gp.types import Criterion, Examples, Parameters, Split, Weighting


class EnvironmentObjective(Resumable):
    """The half of ``EnvironmentModule`` that says what is minimised; the other half trains it."""

    network: nn.Module
    criterion: Criterion
    weighting: Weighting | None
    couples_environments = False
    """Whether the objective is no mean over environments, so that it cannot be put together from parts of a batch."""
    _chunk_size: int | None

    @property
    def second_order(self) -> bool:
        """Whether training differentiates a gradient."""
        return False

    @property
    def shares_examples(self) -> bool:
        """Whether other processes hold more examples of the same environments."""
        return False

    def network_parameters(self) -> Parameters:
        """θ: the network's parameters by name."""
        return dict(self.network.named_parameters())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that the outer optimizer changes: the network and, where learned, the inner rates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def predict(self, parameters: Parameters, x: Tensor) -> Tensor:
        """The network with ``parameters`` on the inputs of one environment, (K, *feature) -> (K, ...)."""
        return tensor_of(torch.func.functional_call(self.network, parameters, (x,)), self.network)

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of one environment, x (K, *feature), y (K, *target)."""
        return self.risk(self.predict(parameters, x), y)

    def risk(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The criterion of one environment's outputs and targets, whose shapes must fit."""
        check_shapes(outputs, y, self.criterion)
        return self.criterion(outputs, y)

    def loss_and_outputs(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and outputs of one environment, by one forward pass unless ``loss`` is overridden."""
        outputs = self.predict(parameters, x)
        return self.loss(parameters, x, y) if self.has_own_loss else self.risk(outputs, y), outputs

    @property
    def has_own_loss(self) -> bool:
        """Whether a subclass defines ``loss`` itself, so that it need not be the criterion of the outputs."""
        return type(self).loss is not EnvironmentObjective.loss

    def trained_examples(self, environments: Environments) -> Examples:
        """The examples on which the unadapted risk is trained, and on which callbacks measure it: the query set.

        Where there is none, those of the support set. So an algorithm without an inner loop trains on what MAML with
        rate 0 would.
        """
        return environments.split("query")

    def environment_losses(self, parameters: Parameters, environments: Environments, split: Split = "query") -> Tensor:
        """L_τ(θ) at the unadapted parameters, (E,); without a query set the support set stands in for it."""
        x, y = self.trained_examples(environments) if split == "query" else environments.split(split)
        losses: Tensor = self.unadapted(self.loss, parameters, x, y)
        return losses

    def unadapted(self, function: Callable[..., Any], parameters: Parameters, *tensors: Tensor) -> Any:
        """``function(parameters, *tensors)`` in each environment, tensors (E, ...), in chunks as large as training's.

        Its graph is that of all environments: for objectives that couple them, which are not cut into ``pieces``.
        """
        parts = zip(*(each.split(self._chunk_size or len(each)) for each in tensors), strict=True)
        values = [over_environments(function, {}, parameters, *part) for part in parts]
        return values[0] if len(values) == 1 else pytree.tree_map(lambda *each: torch.cat(each), *values)

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """The terms of what training minimises in each environment, (E,) each, by name."""
        return {"loss": self.environment_losses(parameters, environments)}

    def term_weights(self) -> Mapping[str, float]:
        """The weight of each term in this step; 1 for those that are not named."""
        return {}

    def combined(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ_i w_i · term_i, (E,)."""
        weights = self.term_weights()
        total: Tensor | None = None
        for name, value in terms.items():
            weight = weights.get(name, 1.0)
            own = value if weight == 1 else weight * value
            total = own if total is None else total + own
        assert total is not None, f"{type(self).__name__}.environment_terms() gave no term"
        return total

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """What training minimises in each environment, (E,).

        Where updates are aggregated, the gradient of its mean is that update, made of these environments alone.
        """
        objectives = self.combined(self.environment_terms(parameters, environments))
        if not self.aggregates or not objectives.requires_grad:
            return objectives
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        gradients = [
            torch.autograd.grad(
                each,
                list(trained.values()),
                retain_graph=True,
                create_graph=recording_constants(),
                materialize_grads=True,
            )
            for each in objectives
        ]
        stacks = {name: torch.stack(column) for name, column in zip(trained, zip(*gradients, strict=True), strict=True)}
        return with_update(objectives, self.aggregate(objectives, stacks), trained)

    def separate(self, parameters: Parameters, environments: Environments) -> Tensor:
        """Numbers that each environment has by itself, (E,), by which it is tried whether many can go at once."""
        if self.couples_environments:
            return self.environment_losses(parameters, environments)
        return self.environment_objectives(parameters, environments)

    # -- updates that are no mean -------------------------------------------------------------------------------

    @property
    def aggregates(self) -> bool:
        """Whether the update is made of the gradients of the environments one by one, and not their mean."""
        return self.weighting is not None or type(self).aggregate is not EnvironmentObjective.aggregate

    def aggregate(self, losses: Tensor, gradients: Parameters) -> Aggregate:
        """The update from the objectives (E,) of all environments and their gradients, tensors (E, *shape): Σ w_τ g_τ.

        Override it for updates that are no weighted sum.
        """
        assert self.weighting is not None
        weights = weights_of(self.weighting, losses, gradients)
        update = {name: torch.tensordot(weights.to(value), value, 1) for name, value in gradients.items()}
        return Aggregate(weights, update)
