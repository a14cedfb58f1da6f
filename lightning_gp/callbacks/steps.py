"""When an optimizer steps, however it is stepped: by Lightning or by hand, once or with a closure that runs often."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch.optim import Optimizer

from lightning_gp._lightning import LightningModule, Trainer


class Listener(Protocol):
    """Who wants to know of steps."""

    def on_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, position: int) -> None:
        """An optimizer is about to step; its gradients are there."""


class Steps:
    """Tells a listener of each step of the Trainer's optimizers once when the first gradients are there.

    Lightning says so at every evaluation of a closure, several times per step of LBFGS, and says nothing where manual
    optimization steps the torch optimizers themselves.

    Args:
        listener: who is told.
        trainer: its optimizers are watched until ``end``.
        pl_module: the module.

    Attributes:
        by_hand: steps so far that Lightning does not count in ``trainer.global_step``.
    """

    def __init__(self, listener: Listener, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listener, self.trainer, self.pl_module = listener, trainer, pl_module
        self.by_hand = 0
        self._known: set[int] = set()
        self._inside: set[int] = set()  # optimizers whose step runs
        self._due: set[int] = set()  # of these, those of which the listener does not know yet
        self._told: set[int] = set()  # those of which it knows before the step runs, as with a gradient scaler
        self._handles: list[Any] = []
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Optimizer):
                self._known.add(id(optimizer))
                self._handles.append(optimizer.register_step_pre_hook(self._begin))
                self._handles.append(optimizer.register_step_post_hook(self._finish))

    def end(self) -> None:
        """Watches no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def by_lightning(self, optimizer: object) -> None:
        """Lightning says that the gradients for a step of an optimizer are there."""
        raw = cast(Optimizer, getattr(optimizer, "_optimizer", optimizer))  # what wraps it in manual optimization
        key = id(raw)
        if key in self._inside and key not in self._due:
            return  # a further evaluation of the closure
        if key in self._known and key not in self._inside:
            self._told.add(key)
        self._due.discard(key)
        self._tell(raw)

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Torch says that an optimizer's ``step`` has been called."""
        key = id(optimizer)
        self._inside.add(key)
        if key in self._told:
            self._told.discard(key)
            return None
        self._due.add(key)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer
        if closure is None:
            self._by_hand(optimizer)
            return None

        def evaluated() -> Any:
            result = closure()
            self._by_hand(optimizer)  # unless Lightning has spoken from inside
            return result

        return (
            ((optimizer, evaluated, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": evaluated})
        )

    def _finish(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside.discard(id(optimizer))
        self._due.discard(id(optimizer))

    def _by_hand(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._due:
            self._due.discard(id(optimizer))
            self.by_hand += 1
            self._tell(optimizer)

    def _tell(self, optimizer: Optimizer) -> None:
        position = next((i for i, each in enumerate(self.trainer.optimizers) if each is optimizer), -1)
        self.listener.on_step(self.trainer, self.pl_module, optimizer, position)
