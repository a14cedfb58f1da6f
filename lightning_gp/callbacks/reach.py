"""What a module's code can reach: everything that hangs on the module and its Trainer, remembered by value."""

from __future__ import annotations

import enum
import functools
import itertools
import re
import sys
import types
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_gp._lightning import LightningDataModule, pl
from lightning_gp.callbacks.kinds import attributes, in_c, place_of, variables
from lightning_gp.callbacks.places import Container, Numbers, Place
from lightning_gp.callbacks.shards import DTENSOR, FSDP_MODULE

T = TypeVar("T")
Label: TypeAlias = tuple[tuple[str, object], ...]
"""How a thing is named behind what holds it: forms and the keys that they take."""
ATOMS: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.dtype, np.generic, enum.Enum),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.MappingProxyType, types.GenericAlias),
    *(types.WrapperDescriptorType, types.MethodWrapperType, types.MethodDescriptorType, types.GetSetDescriptorType),
)
LIBRARIES = frozenset(sys.stdlib_module_names) | {
    *("torch", "numpy", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "lightning_gp"),
    *("torchmetrics", "transformers", "tokenizers", "torchvision", "jsonargparse", "PIL", "pandas", "scipy", "pytest"),
}
"""Of their classes and functions only what hangs on instances can change; of all others also classes and variables."""
MACHINERY = frozenset(
    {
        *("threading", "_thread", "queue", "_queue", "multiprocessing", "concurrent", "asyncio", "logging", "socket"),
        *("subprocess", "weakref", "importlib", "inspect", "ctypes", "tqdm", "rich", "wandb", "tensorboard", "mlflow"),
        *("warnings", "contextlib", "tensorboardX", "comet_ml", "neptune", "_pytest", "pluggy"),
    }
)
"""What runs in threads of its own, or belongs to Python: not looked into."""
FOREIGN = (
    "torch.distributed",
    "torch._C",
    "torch._dynamo",
    "torch.fx",
    "torch.cuda",
    "torch._ops",
    "torch.nn.parallel",
)
MANY = 1000
"""Items of a data set beyond which they are not looked into."""


class Snapshot:
    """Everything that can be reached from some objects, as it is now.

    Args:
        roots: objects, by the names under which messages speak of them.
        apart: types of objects that are not looked into.
        thorough: also watch objects written in C, by pickling them.
    """

    def __init__(self, roots: dict[str, object], apart: tuple[type, ...] = (), thorough: bool = False) -> None:
        self.places: list[tuple[Place[Any], Label, int]] = []
        self._apart = (*apart, pl.loggers.Logger, pl.profilers.Profiler)
        self._thorough = thorough
        self._seen: dict[int, object] = {}
        # Depth first, so that things are named by where the module, the first root, holds them.
        waiting: list[tuple[object, Label, int, bool]] = [
            (thing, (("{}", name),), -1, False) for name, thing in reversed(roots.items())
        ]
        while waiting:
            thing, label, parent, data = waiting.pop()
            waiting += reversed(list(self._enter(thing, label, parent, data)))

    def lend(self) -> None:
        """Puts copies in the place of iterators, until everything is put back."""
        copies: dict[int, object] = {}
        for place, _, _ in self.places:
            if isinstance(place, Container):
                place.lend(copies)

    def put_back(self) -> None:
        """Makes everything what it was: the same objects with the same values."""
        for place, _, _ in self.places:
            place.put_back()

    def changes(self) -> list[str]:
        """Names of what is not what it was."""
        return [self._name(i) for i, (place, _, _) in enumerate(self.places) if place.changed()]

    def of_type(self, kind: type[T]) -> list[T]:
        """Everything of a type that can be reached."""
        return [thing for thing in self._seen.values() if isinstance(thing, kind)]

    def touched(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether one of these tensors has been written to, be it with the same numbers."""
        wanted = set(map(id, tensors))
        numbers = (place for place, _, _ in self.places if isinstance(place, Numbers))
        return any(place.touched() for place in numbers if id(place.thing) in wanted)

    def _name(self, index: int) -> str:
        words = []
        while index >= 0:
            _, label, index = self.places[index]
            words.append("".join(form.format(key if isinstance(key, (str, int)) else "…") for form, key in label))
        return re.sub(r"\._(?:parameters|buffers|modules)\['([^']+)'\]", r".\1", "".join(reversed(words))).replace(
            "._trainer", ".trainer"
        )

    def _enter(self, thing: object, label: Label, parent: int, data: bool) -> Iterator[tuple[object, Label, int, bool]]:
        """Remembers a thing and gives what it holds."""
        if id(thing) in self._seen or not _worth_a_look(cast(Hashable, type(thing))) or isinstance(thing, self._apart):
            return
        if any(thing is stream for stream in (sys.stdout, sys.stderr, sys.stdin)):
            return
        self._seen[id(thing)] = thing
        data = data or isinstance(thing, (Dataset, DataLoader, LightningDataModule))
        places = list(self._places(thing, data))
        for place in places:
            self.places.append((place, label, parent))
            label, parent = (), len(self.places) - 1
            if isinstance(place, Container) and _plain(place.held, data):
                continue
            for key, held in place.inside():
                yield held, ((place.form, key),), parent, data
        if isinstance(thing, types.MethodType):
            yield from ((each, label, parent, data) for each in (thing.__self__, thing.__func__))
        elif isinstance(thing, functools.partial):
            yield from ((each, label, parent, data) for each in (thing.func, thing.args, thing.keywords))
        elif isinstance(thing, types.FunctionType):
            held = [*(thing.__closure__ or ()), thing.__defaults__, thing.__kwdefaults__]
            names = [*thing.__code__.co_freevars, "__defaults__", "__kwdefaults__"]
            yield from ((each, (*label, (".{}", name)), parent, data) for name, each in zip(names, held, strict=True))
        elif isinstance(thing, (staticmethod, classmethod)):
            yield thing.__func__, label, parent, data
        elif isinstance(thing, property):
            yield from ((each, label, parent, data) for each in (thing.fget, thing.fset))
        elif isinstance(thing, type):
            yield from (
                (each, ((".{}", each.__name__),), parent, data) for each in thing.__bases__ if _of_the_user(each)
            )
        else:
            # ``fully_shard`` has put a class of its own before the user's.
            own = type(thing).__mro__[2 if isinstance(thing, FSDP_MODULE) else 0]
            if _of_the_user(own):
                yield own, ((".{}", own.__name__),), parent, data

    def _places(self, thing: object, data: bool) -> Iterable[Place[Any]]:
        if isinstance(thing, type):
            return [variables(thing, {}, set())] if _of_the_user(thing) else []
        if isinstance(thing, types.FunctionType):
            own = [place_of(thing.__dict__, False)] if thing.__dict__ else []
            if _of_the_user(thing):
                names = _names(thing.__code__)
                own.append(variables(thing, thing.__globals__, names) if names else None)
            return [each for each in own if each is not None]
        place = place_of(thing, data)
        found = [place] if place is not None else []
        if not isinstance(thing, (torch.Tensor, np.ndarray, tuple)):
            found += attributes(thing)
            if not found and self._thorough and not isinstance(thing, (types.MethodType, functools.partial)):
                found = [in_c(thing)]
        return found


@functools.lru_cache(maxsize=4096)
def _worth_a_look(kind: type) -> bool:
    module = str(getattr(kind, "__module__", ""))
    if issubclass(kind, (torch.Generator, *DTENSOR, *FSDP_MODULE)):
        return True
    known = issubclass(kind, ATOMS) or module.partition(".")[0] in MACHINERY or module.startswith(FOREIGN)
    return not known


def _plain(held: Any, data: bool) -> bool:
    """Whether the items of a container need no look: they cannot change, or are those of a data set."""
    items = held.values() if isinstance(held, dict) else held
    if len(items) > MANY and data:
        return True
    kinds = set(map(type, items))
    if kinds == {tuple}:
        kinds = set(map(type, itertools.chain.from_iterable(items)))
    return all(issubclass(kind, ATOMS) for kind in kinds)


def _of_the_user(thing: object) -> bool:
    module = getattr(thing, "__module__", None) or ""
    return module.partition(".")[0] not in LIBRARIES


@functools.lru_cache(maxsize=4096)
def _code_names(code: types.CodeType) -> frozenset[str]:
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return frozenset(code.co_names).union(*map(_code_names, inner))


def _names(code: types.CodeType) -> set[str]:
    return set(_code_names(code))
