"""Kinds of things that code can change, each with what it was: whether it has changed, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from lightning_gp.callbacks.comparing import equal, same_bits
from lightning_gp.callbacks.iterators import ITERATORS, lent
from lightning_gp.callbacks.shards import local

T = TypeVar("T")


class Place(Generic[T]):
    """Something that code may change, and what it was.

    Args:
        thing: what may change; it is kept, so that it can be put back as the same object.
    """

    form = "{}"
    """How what it holds is named behind its own name."""

    def __init__(self, thing: T) -> None:
        self.thing = thing

    def inside(self) -> Iterable[tuple[object, object]]:
        """What it holds, each with the key that ``form`` takes."""
        return ()

    def changed(self) -> bool:
        """Whether it is not what it was."""
        return False

    def put_back(self) -> None:
        """Makes it what it was, where that is possible."""


class State(Place[Any]):
    """What has a state that can be read and set: random numbers."""

    def __init__(self, thing: Any, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        super().__init__(thing)
        self.read, self.write, self.state = read, write, read()

    def changed(self) -> bool:
        """By value."""
        return not equal(self.read(), self.state)

    def put_back(self) -> None:
        """Sets the state."""
        self.write(self.state)


class Watched(Place[Any]):
    """What can be seen to have changed, but not be put back: files, generators, objects written in C."""

    def __init__(self, thing: Any, read: Callable[[Any], Any]) -> None:
        super().__init__(thing)
        self.read, self.state = read, read(thing)

    def inside(self) -> Iterable[tuple[object, object]]:
        """What a generator's variables hold, and what an iterator draws from."""
        if isinstance(self.thing, GeneratorType) and self.thing.gi_frame is not None:
            yield from ((f".{name}", value) for name, value in self.thing.gi_frame.f_locals.items())
        elif isinstance(self.thing, ITERATORS) and self.state:
            yield from (("", value) for value in self.state[0])

    def changed(self) -> bool:
        """By what can be read off it."""
        return not equal(self.read(self.thing), self.state)


class Container(Place[Any]):
    """What holds other objects: a list, dict or set, the attributes of an object or a class, a variable of a function.

    While code runs, iterators in it are copies.
    """

    def __init__(self, thing: Any, read: Callable[[], Any], write: Callable[[Any], object], form: str) -> None:
        super().__init__(thing)
        self.read, self.write, self.form, self.held = read, write, form, read()

    def inside(self) -> Iterable[tuple[object, object]]:
        """Its items, by key or position."""
        if isinstance(self.held, dict):
            yield from self.held.items()
        else:
            yield from enumerate(self.held)

    def lend(self, copies: dict[int, object]) -> None:
        """Puts copies in the place of iterators."""
        values = self.held.values() if isinstance(self.held, dict) else self.held
        if not any(type(value) in ITERATORS for value in values) or isinstance(self.held, (set, frozenset)):
            return
        if isinstance(self.held, dict):
            self.write({key: lent(value, copies) for key, value in self.held.items()})
        else:
            self.write([lent(value, copies) for value in self.held])

    def changed(self) -> bool:
        """Whether it holds other objects, or in another order."""
        now, held = self.read(), self.held
        if isinstance(held, (set, frozenset)):
            return bool(now != held)
        if len(now) != len(held):
            return True
        if not isinstance(held, dict):
            return any(a is not b for a, b in zip(now, held, strict=True))
        return any(a is not b or now[a] is not held[b] for a, b in zip(now, held, strict=True))

    def put_back(self) -> None:
        """The same objects in the same order."""
        if self.changed():
            self.write(self.held)


class Numbers(Place[Tensor]):
    """A tensor: its numbers, where they are stored, ``requires_grad``, hooks, history and ``.grad``.

    Args:
        thing: the tensor; of a sharded one, the numbers are those of this process.
    """

    def __init__(self, thing: Tensor) -> None:
        super().__init__(thing)
        own = local(thing)
        self.alias = own.data
        self.plain = own.layout == torch.strided
        self.core = _without_repetition(self.alias) if self.plain else self.alias
        self.saved = self.core.clone()
        self.leaf, self.function = thing.is_leaf, thing.grad_fn
        self.requires_grad = thing.requires_grad
        self.grad = thing.grad if thing.is_leaf else None
        self.hooks = thing._backward_hooks
        self.version = None if own.is_inference() else _unsafe_preserve_version_counter(own)
        self.number = 0 if own.is_inference() else own._version

    def inside(self) -> Iterable[tuple[object, object]]:
        """Its gradient, and what Python has attached to it."""
        if self.grad is not None:
            yield ".grad", self.grad
        if self.hooks:
            yield "._backward_hooks", self.hooks
        if getattr(self.thing, "__dict__", None):
            yield "", self.thing.__dict__

    def touched(self) -> bool:
        """Whether it has been written to, be it with the same numbers."""
        number = 0 if self.version is None else local(self.thing)._version
        return number != self.number or self.changed()

    def _moved(self) -> bool:
        now, alias = local(self.thing), self.alias
        if (now.shape, now.dtype, now.device) != (alias.shape, alias.dtype, alias.device):
            return True
        return self.plain and (now.data_ptr(), now.stride()) != (alias.data_ptr(), alias.stride())

    def changed(self) -> bool:
        """By the bits of its numbers."""
        now = self.thing
        if self._moved() or now.requires_grad != self.requires_grad or now.grad_fn is not self.function:
            return True
        if self.leaf and now.grad is not self.grad:
            return True
        return not same_bits(self.core if self.plain else now.data, self.saved)

    def put_back(self) -> None:
        """The same storage with the same numbers; autograd is not told, as nothing has changed in the end."""
        now = self.thing
        with torch.inference_mode(now.is_inference()), torch.no_grad():
            if self.leaf and not now.is_leaf and not now._is_view():
                now.detach_()
            if self._moved():
                local(now).data = self.alias
            if self.plain:
                self.core.copy_(self.saved)
            elif not same_bits(now.data, self.saved):
                now.copy_(self.saved)
        if now.is_leaf and now.requires_grad != self.requires_grad:
            now.requires_grad_(self.requires_grad)
        if self.leaf and now.is_leaf:
            if now.grad is not self.grad:
                now.grad = self.grad
            if now._backward_hooks is not self.hooks:
                now._backward_hooks = self.hooks
        if self.version is not None:
            self.version.__exit__(None, None, None)


class Array(Place["np.ndarray[Any, Any]"]):
    """A numpy array."""

    def __init__(self, thing: np.ndarray[Any, Any]) -> None:
        super().__init__(thing)
        self.saved = thing.copy()

    def inside(self) -> Iterable[tuple[object, object]]:
        """The objects in an array of objects."""
        if self.thing.dtype.hasobject:
            yield from ((f".flat[{i}]", value) for i, value in enumerate(self.thing.flat))

    def changed(self) -> bool:
        """By its bytes."""
        return self.thing.shape != self.saved.shape or self.thing.tobytes() != self.saved.tobytes()

    def put_back(self) -> None:
        """The same numbers in the same memory."""
        if self.thing.shape == self.saved.shape and self.thing.flags.writeable:
            np.copyto(self.thing, self.saved)


def _without_repetition(tensor: Tensor) -> Tensor:
    """An expanded tensor's numbers, each once."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor
