"""``UpdateStatistics``: how long the optimizer's step is, against the weights and along the gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gp._lightning import LightningModule, Trainer
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.groups import Grouping, check_groups, grouped, parameters_by_name
from lightning_gp.callbacks.measurement import Report
from lightning_gp.callbacks.shards import part, sharded
from lightning_gp.contracts import Key
from lightning_gp.functional.gradients import dense
from lightning_gp.functional.processes import sum_over_processes


class Taken(NamedTuple):
    """What is kept of a step.

    Attributes:
        names: of the parameters, P.
        rows: of each parameter ‖θ′ − θ‖, ‖θ‖, ‖g‖ and (θ′ − θ)·g, (4, P), on their device.
        sharded: whether they are those of this process's parts.
    """

    names: list[str]
    rows: Tensor
    sharded: bool = False

    def whole(self) -> Tensor:
        """The rows over all processes, float64 on the CPU."""
        rows = self.rows.double()
        if self.sharded:
            sums = sum_over_processes(torch.cat([rows[:3].square(), rows[3:]]))
            rows = torch.cat([sums[:3].sqrt(), sums[3:]])
        return rows.cpu()


class Begun:
    """The weights and gradients with which an optimizer is about to step.

    Args:
        parameters: what it changes, by name.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        trained = {n: p for n, p in parameters.items() if p.numel() and (p.requires_grad or p.grad is not None)}
        self.names, self.parameters = list(trained), list(trained.values())
        self.held = part if sharded(self.parameters) else dense  # squares of parts add up over processes
        self.weights = [_real(self.held(each), copy=True) for each in self.parameters]
        # Some optimizers use .grad as their buffer.
        self.gradients = [
            torch.zeros_like(weight) if each.grad is None else _real(self.held(each.grad), copy=True)
            for each, weight in zip(self.parameters, self.weights, strict=True)
        ]

    def taken(self) -> Taken:
        """The step has been taken; nothing waits for the device."""
        update = list(torch._foreach_sub([_real(self.held(each)) for each in self.parameters], self.weights))
        norms = [torch._foreach_norm(each) for each in (update, self.weights, self.gradients)]
        torch._foreach_mul_(update, self.gradients)
        rows = [*norms, [each.sum() for each in update]]
        device = rows[0][0].device
        found = torch.stack([torch.stack([each.to(device) for each in row]) for row in rows])
        return Taken(self.names, found, self.held is part)


class UpdateStatistics(Probe):
    """The length of an optimizer's step θ → θ′, its ratio to the weights, and its cosine with the negative gradient.

    ‖θ′ − θ‖, ‖θ‖, ‖θ′ − θ‖/‖θ‖ and cos(θ′ − θ, −g), of the training step itself. Gradient descent has cosine 1 and
    ratio β‖g‖/‖θ‖; momentum, preconditioners and weight decay turn the step away from the gradient. A ratio of about
    10⁻³ is a common rule of thumb (A. Karpathy, notes to the course CS231n, "Neural networks part 3", 2015).

    θ are the parameters of an optimizer that are not frozen, g is what it finds in ``.grad``: accumulated, reduced over
    processes, before clipping. A factor on the loss does not change the cosine, so that it is right under a gradient
    scaler; a step that the scaler skips is an update of length 0. Works with manual optimization too, for the
    optimizers of the Trainer.

    **Which steps**: the last one before the value is logged: of the epoch, or with ``every_n_steps`` of the batch in
    which the n-th step falls. Several optimizers are taken together, the last step of each; ``groups`` tells their
    parts apart. A parameter that two of them share counts in both. Steps for which there is no gradient at all are left
    out.

    {keys}

    A cosine with a step or gradient of length 0 is NaN.

    Cost: no pass of the module. A copy of weights and gradients while the optimizer steps, and a few passes over them,
    without waiting for the device; with ``every_n_steps`` only where a value is due (and in the first batch that
    steps), otherwise at each step of the epoch, since its last is not known before.

    Args:
        groups: number of leading parts of a parameter's name that make its group (1: the outermost submodules), or a
            function from names to groups; None for no groups.
        **kwargs: see ``Probe``; ``probe_size`` does nothing here.

    Raises:
        ValueError: if ``groups`` is out of range, or a ``loss_fn`` is given.
    """

    keys = (
        Key("updates/norm", "[0, ∞)", "‖θ′ − θ‖"),
        Key("updates/parameter_norm", "[0, ∞)", "‖θ‖, before the step"),
        Key("updates/ratio", "[0, ∞]", "‖θ′ − θ‖ / ‖θ‖"),
        Key("updates/cosine", "[−1, 1]", "cos(θ′ − θ, −g)"),
        Key("updates/norm/<group>", "[0, ∞)", "the same for a group of parameters, with ``groups``"),
        Key("updates/parameter_norm/<group>", "[0, ∞)", "likewise"),
        Key("updates/ratio/<group>", "[0, ∞]", "likewise"),
        Key("updates/cosine/<group>", "[−1, 1]", "likewise"),
    )

    def __init__(self, groups: Grouping | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_groups(groups)
        if self.loss_fn is not None:
            raise ValueError(
                f"loss_fn={self.loss_fn!r}: UpdateStatistics measures the steps that training takes and computes no "
                "loss; leave loss_fn out."
            )
        self.groups = groups

    def begin(self) -> None:
        """Also forgets the last steps."""
        super().begin()
        self._begun: dict[int, Begun] = {}
        self._taken: dict[int, Taken] = {}
        self._handles: list[Any] = []
        self._most: int | None = None  # steps that a batch has taken

    def needs_loss(self, pl_module: LightningModule) -> bool:
        """Never."""
        return False

    def works_on_shards(self, pl_module: LightningModule) -> bool:
        """It takes the step as it is."""
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also watches where steps end."""
        super().on_train_start(trainer, pl_module)
        for position, optimizer in enumerate(trainer.optimizers):
            if isinstance(optimizer, Optimizer):
                self._handles.append(optimizer.register_step_post_hook(partial(self._end, position)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimizers are no longer watched."""
        super().on_train_end(trainer, pl_module)
        for handle in self._handles:
            handle.remove()
        self._handles, self._begun = [], {}

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """Keeps what the step begins with."""
        super().on_step(trainer, pl_module, optimizer, position)
        self._begun.pop(position, None)
        parameters = parameters_by_name(optimizer, pl_module)
        if self._due(trainer) and any(each.grad is not None for each in parameters.values()):
            self._begun[position] = Begun(parameters)

    def _due(self, trainer: Trainer) -> bool:
        """Whether this step of an optimizer may be its last before a value."""
        if self.every_n_steps is None:
            return (trainer.current_epoch + 1) % self.every_n_epochs == 0
        further = self._most or self.every_n_steps  # steps that this batch may still take, this one included
        return (self.steps(trainer) + further) // self.every_n_steps > self._steps_seen // self.every_n_steps

    def _end(self, position: int, *args: object) -> None:
        """An optimizer has stepped."""
        begun = self._begun.pop(position, None)
        if begun is not None:
            self._taken[position] = begun.taken()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Steps that have begun and not ended are those that a scaler has skipped."""
        for position in list(self._begun):
            self._end(position)
        steps = self.steps(trainer) - self._steps_seen
        self._most = max(self._most or 0, steps) or None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.every_n_steps is not None:
            self._taken = {}

    def report_without_probe(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """Norms over the parameters of all optimizers."""
        taken, self._taken = [self._taken[position] for position in sorted(self._taken)], {}
        if not taken:
            return Report()
        names = [name for each in taken for name in each.names]
        rows = torch.cat([each.whole() for each in taken], dim=1)
        report = Report(_statistics(rows))
        columns = {name: [i for i, each in enumerate(names) if each == name] for name in names}
        for group, members in grouped(columns, self.groups).items():
            own = rows[:, [i for name in members for i in columns[name]]]
            report.values.update({f"{key}/{group}": value for key, value in _statistics(own).items()})
        return report

    def state_dict(self) -> dict[str, Any]:
        """The last steps."""
        steps = {position: {**each._asdict(), "rows": each.rows.cpu()} for position, each in self._taken.items()}
        return {**super().state_dict(), "steps": steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        super().load_state_dict(state_dict)
        self._taken = {position: Taken(**each) for position, each in state_dict.get("steps", {}).items()}


def _statistics(rows: Tensor) -> dict[str, float]:
    """Of the ``Taken.rows`` (4, P) of some parameters."""
    update, parameter, gradient = torch.linalg.vector_norm(rows[:3], dim=1)
    cosine = -rows[3].sum() / (update * gradient)
    values = {"norm": update, "parameter_norm": parameter, "ratio": update / parameter, "cosine": cosine.clamp(-1, 1)}
    return {f"updates/{key}": float(value) for key, value in values.items()}


def _real(tensor: Tensor, copy: bool = False) -> Tensor:
    """In float32 or better; complex numbers as pairs of real ones."""
    real = tensor.detach()
    real = torch.view_as_real(real.resolve_conj()) if real.is_complex() else real
    return real.to(torch.promote_types(real.dtype, torch.float32), copy=copy)
