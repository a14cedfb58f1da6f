"""How a thing of any type is remembered: which kind of place it is, and what can be read off it."""

from __future__ import annotations

import array
import functools
import io
import pickle
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Hashable, MutableMapping
from types import CellType, FunctionType, GeneratorType, MemberDescriptorType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lightning_gp.callbacks.iterators import ITERATORS
from lightning_gp.callbacks.places import Array, Container, Numbers, Place, State, Watched


def place_of(thing: object, large: bool) -> Place[Any] | None:
    """How a thing of any type but those with ``__dict__`` is remembered; None for what cannot change or be seen to.

    Args:
        thing: anything.
        large: data of a data set: tensors and arrays are watched, not copied.
    """
    if isinstance(thing, Tensor):
        if torch.nn.parameter.is_lazy(thing) or thing.device.type == "meta":
            return None
        return Watched(thing, _sketch) if large and thing.nbytes > 2**16 else Numbers(thing)
    if isinstance(thing, np.ndarray):
        return Watched(thing, _sketch) if large and thing.nbytes > 2**16 else Array(thing)
    if isinstance(thing, torch.Generator):
        return State(thing, thing.get_state, thing.set_state)
    if isinstance(thing, (np.random.Generator, np.random.BitGenerator)):
        bits = thing.bit_generator if isinstance(thing, np.random.Generator) else thing
        return State(thing, lambda: bits.state, lambda state: setattr(bits, "state", state))
    if isinstance(thing, np.random.RandomState):
        return State(thing, thing.get_state, thing.set_state)
    if isinstance(thing, random.Random):
        return State(thing, thing.getstate, thing.setstate)
    if isinstance(thing, CellType):
        return _cell(thing)
    if isinstance(thing, io.IOBase):
        return Watched(thing, _position)
    if isinstance(thing, GeneratorType):
        return Watched(thing, _frame)
    if isinstance(thing, ITERATORS):
        return Watched(thing, _reduced)
    if isinstance(thing, array.array):
        return State(
            thing, thing.tolist, lambda held: thing.__setitem__(slice(None), array.array(thing.typecode, held))
        )
    return _container(thing)


def in_c(thing: object) -> Place[Any]:
    """What Python cannot look into, by how it would be pickled."""
    return Watched(thing, _written)


def attributes(thing: object) -> list[Place[Any]]:
    """What an object holds under names: its ``__dict__``, and the slots of its classes."""
    found: list[Place[Any]] = []
    own = getattr(thing, "__dict__", None)
    if type(own) is dict:
        found.append(_mapping(own, dict, ".{}"))
    slots = _slots(cast(Hashable, type(thing)))
    if slots:

        def read() -> dict[str, Any]:
            return {name: getattr(thing, name) for name in slots if hasattr(thing, name)}

        def write(held: dict[str, Any]) -> None:
            for name, member in slots.items():
                if name in held:
                    if getattr(thing, name, held) is not held[name]:
                        member.__set__(thing, held[name])
                elif hasattr(thing, name):
                    member.__delete__(thing)

        found.append(Container(thing, read, write, ".{}"))
    return found


@functools.lru_cache(maxsize=4096)
def _slots(kind: Hashable) -> dict[str, MemberDescriptorType]:
    return {
        name: member
        for cls in kind.__mro__  # type: ignore[attr-defined]
        if "__slots__" in vars(cls)
        for name, member in vars(cls).items()
        if isinstance(member, MemberDescriptorType)
    }


def variables(thing: type | FunctionType, scope: dict[str, Any], names: set[str]) -> Container:
    """Attributes of a class, or the variables of a module that a function uses, under their names."""

    def read() -> dict[str, Any]:
        space = vars(thing) if isinstance(thing, type) else scope
        return {name: space[name] for name in names if name in space} if names else dict(space)

    def write(held: dict[str, Any]) -> None:
        now = read()
        for name in {*now, *held}:
            if name in held and now.get(name) is not held[name]:
                setattr(thing, name, held[name]) if isinstance(thing, type) else scope.__setitem__(name, held[name])
            elif name not in held:
                delattr(thing, name) if isinstance(thing, type) else scope.__delitem__(name)

    return Container(thing, read, write, ".{}" if isinstance(thing, type) else ": {}")


def _container(thing: object) -> Container | None:
    base: Any
    for base in (OrderedDict, dict):
        if isinstance(thing, base):
            return _mapping(thing, base, "[{!r}]")
    if isinstance(thing, (list, bytearray)):
        return Container(thing, lambda: list(thing), lambda held: thing.__setitem__(slice(None), held), "[{}]")
    if isinstance(thing, deque):
        return Container(
            thing, lambda: list(thing), lambda held: (deque.clear(thing), deque.extend(thing, held)), "[{}]"
        )
    if isinstance(thing, set):
        return Container(thing, lambda: set(thing), lambda held: (set.clear(thing), set.update(thing, held)), "[{}]")
    if isinstance(thing, (tuple, frozenset)):
        return Container(thing, lambda: thing, lambda held: None, "[{}]")
    return None


def _mapping(thing: MutableMapping[Any, Any], base: Any, form: str) -> Container:
    # The base's own methods: a subclass may do anything in its.
    return Container(
        thing, lambda: dict(base.items(thing)), lambda held: (base.clear(thing), base.update(thing, held)), form
    )


def _cell(cell: CellType) -> Container:
    def read() -> list[Any]:
        try:
            return [cell.cell_contents]
        except ValueError:  # not set yet
            return []

    def write(held: list[Any]) -> None:
        if held:
            cell.cell_contents = held[0]

    return Container(cell, read, write, "")


def _sketch(thing: Any) -> Any:
    """Where data lie, and some of their numbers."""
    if isinstance(thing, Tensor):
        flat = thing.detach().reshape(-1) if thing.is_contiguous() else thing.detach()[:1].reshape(-1)
        some = flat[:: max(1, len(flat) // 256)].cpu().numpy().tobytes() if flat.dtype != torch.bfloat16 else b""
        return thing.data_ptr(), None if thing.is_inference() else thing._version, some
    flat = thing.reshape(-1) if thing.flags.c_contiguous else thing[:1].reshape(-1)
    return thing.shape, flat[:: max(1, len(flat) // 256)].tobytes()


def _position(file: io.IOBase) -> Any:
    try:
        return file.closed or (file.tell() if file.seekable() else None)
    except (OSError, ValueError):
        return None


def _frame(generator: GeneratorType[Any, Any, Any]) -> Any:
    frame = generator.gi_frame
    return None if frame is None else (frame.f_lasti, *frame.f_locals.items())


def _reduced(iterator: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            _, *parts = iterator.__reduce__()
        except Exception:
            return None
    # Some make a new inner iterator each time that they are asked: itertools.cycle from its second round on.
    inner = [_reduced(each) if isinstance(each, ITERATORS) else each for each in parts[0]]
    return (tuple(inner), *parts[1:])


def _written(thing: object) -> Any:
    try:
        return pickle.dumps(thing)
    except Exception:
        return None
