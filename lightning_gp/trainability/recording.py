"""Records the tensor operations of a step once and runs them again, without the Python and autograd that led to them.

A step of a small problem spends half of its time between its operations: in ``vmap``, in autograd, in the network's
``forward``. The operations themselves are the same in each iteration. Run again in the same order, on other numbers,
they give bitwise what the objective gives, as long as it is a function of parameters, batch and α alone. That is
compared, not assumed: on the batch of the recording, on the next one, and wherever a loss is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from lightning_gp.environments import Environments

Step: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Takes tensors, returns a loss and its gradients."""
ValueAndGradients: TypeAlias = Callable[[list[Environments]], tuple[Tensor, list[Tensor]]]

RECORD_AT = 25
"""Calls with the same rates and shapes until they are recorded, which costs as much as some hundred saved calls."""

_aten: Any = torch.ops.aten
_SAME_NUMBERS = (_aten.expand, _aten.view, _aten._unsafe_view, _aten.slice, _aten.detach, _aten.alias)


class Recorded:
    """``evaluate``, by running recorded operations where this gives the same.

    What cannot be recorded (random numbers, Python that looks at values, several chunks of environments) is evaluated
    as it is.

    Args:
        evaluate: value and gradients of a batch.
        inputs: the tensors beside the batch that change between calls, always the same objects.
        settings: whatever else it depends on, such as the rate α; each value gets its own recording.
        whole: whether a batch is computed at once.
    """

    def __init__(
        self,
        evaluate: ValueAndGradients,
        inputs: Sequence[Tensor],
        settings: Callable[[], Hashable],
        whole: Callable[[list[Environments]], bool],
    ) -> None:
        self.evaluate, self.inputs, self.settings, self.whole = evaluate, list(inputs), settings, whole
        self.calls: Counter[Hashable] = Counter()
        self.recordings: dict[Hashable, Step | None] = {}

    def __call__(self, batches: list[Environments]) -> tuple[Tensor, list[Tensor]]:
        """Value and gradients."""
        tensors = tensors_of(batches)
        key = (self.settings(), layout(tensors))
        self.calls[key] += 1
        age = self.calls[key] - RECORD_AT
        if age == 0:
            self.recordings[key] = self._record(batches, tensors)
        recording = self.recordings.get(key)
        if recording is None:
            return self.evaluate(batches)
        with torch.no_grad():
            loss, *gradients = recording(*self.inputs, *tensors)
        if age < 2:
            expected = self.evaluate(batches)
            if not all(_same(*pair) for pair in zip([loss, *gradients], [expected[0], *expected[1]], strict=True)):
                self.recordings[key] = None
            return expected
        return loss, gradients

    def confirm(self, batches: list[Environments], loss: Tensor) -> None:
        """Evaluates the objective itself, if ``loss`` comes from a recording.

        Raises:
            RuntimeError: if the two losses differ in any bit.
        """
        if self.recordings.get((self.settings(), layout(tensors_of(batches)))) is None:
            return
        expected = self.evaluate(batches)[0]
        if not _same(loss, expected):
            raise RuntimeError(
                f"The objective's operations, recorded some iterations ago, give {loss.item()!r} on this batch, but "
                f"the objective gives {expected.item()!r}: it depends on more than parameters, batch and α, such as a "
                "count of its calls or values that were taken out of tensors. Make it a function of these alone."
            )

    def _record(self, batches: list[Environments], tensors: list[Tensor]) -> Step | None:
        if not self.whole(batches):
            return None

        def step(*_: Tensor) -> tuple[Tensor, ...]:
            loss, gradients = self.evaluate(batches)
            return loss, *gradients

        try:
            with torch.random.fork_rng(devices=[]):  # what is not recorded goes on with the numbers it would have had
                graph = recorded(step, [*self.inputs, *tensors])
        except Exception:  # whatever the reason, the objective can still be evaluated
            return None
        random = torch.Tag.nondeterministic_seeded
        return None if any(random in node.target.tags for node in _operations(graph)) else graph


def recorded(step: Step, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The operations of ``step(*inputs)``, gradients included, as a function of ``inputs``.

    Left out is what does not change numbers: views that are like what they view, and products with 1.

    Args:
        step: may also reach the inputs by other ways than its arguments.
        inputs: the tensors that change between calls.

    Returns:
        A function of tensors of the same shapes, strides and types; others would give errors or wrong numbers.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    module: fx.GraphModule = make_fx(step)(*inputs)
    operations = _operations(module)
    if not any(node.target._schema.is_mutable for node in operations):
        for node in operations:
            if _changes_nothing(node):
                node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def tensors_of(batches: list[Environments]) -> list[Tensor]:
    """All tensors of a batch."""
    return [tensor for environments in batches for examples in environments if examples for tensor in examples]


def layout(tensors: list[Tensor]) -> Hashable:
    """What operations may depend on, beside numbers: shapes, strides, types, and which tensors are the same one."""
    ids = [id(tensor) for tensor in tensors]
    return tuple(
        (tensor.shape, tensor.stride(), tensor.dtype, ids.index(own)) for tensor, own in zip(tensors, ids, strict=True)
    )


def _operations(module: fx.GraphModule) -> list[Any]:
    return [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]


def _changes_nothing(node: fx.Node) -> bool:
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node):
        return False
    old, new = before.meta.get("tensor_meta"), node.meta.get("tensor_meta")
    if old is None or new is None or old.dtype != new.dtype or old.shape != new.shape:
        return False
    operation: Any = node.target
    if operation == _aten.mul.Scalar:
        return bool(node.args[1] == 1)
    return operation.overloadpacket in _SAME_NUMBERS and bool(old.stride == new.stride)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())
