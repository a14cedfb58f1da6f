"""The stack machine of the pickle format, for data only: nothing that a file names is imported or called.

Python's own unpickler is not used because it acts on what it reads: it imports what the file names, and reserves the
memory that the file asks for. Here, names stand for functions that the caller gives, every other name and every
instruction that makes objects is refused, and lengths are checked against the file's size before they are believed.
"""

from __future__ import annotations

import codecs
import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE = 4096  # bytes; longer byte strings stay in the file
_HASHABLE = (str, bytes, int, float, bool, type(None))
_MARK = object()


class RefusedError(Exception):
    """The file asks for more than data."""


class Unbuilt:
    """An object whose state comes with a later BUILD instruction, when ``build(*state)`` becomes its ``value``."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build
        self.value: Any = None


class _Global(str):
    """The name of an admitted function or class."""


def run_pickle(file: mmap.mmap, functions: Mapping[str, Callable[..., Any] | None]) -> Any:
    """What a pickle holds.

    Byte strings of more than 4096 bytes become views of the file, uint8 (length,). Text that Python 2 wrote as ``str``
    becomes ``str`` if it is ASCII, else bytes.

    Args:
        file: the mapped file.
        functions: "module.name" → what is called when the file calls that; None for names that are mere arguments.

    Raises:
        RefusedError: saying what it asks for.
        ValueError: or whatever else Python raises when a damaged file leads there.
    """
    machine = _Machine(file, functions)
    while True:
        operation = machine.read(1)[0]
        if operation == pickle.STOP[0]:
            return machine.pop()
        action = _ACTIONS.get(operation)
        if action is not None:
            action(machine)
        elif operation in _OBJECT_MAKERS:
            raise RefusedError(f"makes objects (pickle instruction {_OBJECT_MAKERS[operation]})")
        else:
            raise ValueError(f"no pickle instruction at byte {machine.position - 1}")


class _Machine:
    """What the instructions act on: the place in the file, the stack, the memo."""

    def __init__(self, file: mmap.mmap, functions: Mapping[str, Callable[..., Any] | None]) -> None:
        self.file = file
        self.array = np.frombuffer(file, np.uint8)
        self.functions = functions
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # Reading the file

    def skip(self, length: int) -> slice:
        start, self.position = self.position, self.position + length
        if length < 0 or self.position > len(self.array):
            raise ValueError("it ends too early")
        return slice(start, self.position)

    def read(self, length: int) -> bytes:
        return self.file[self.skip(length)]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.read(size), "little", signed=signed)

    def line(self) -> str:
        end = self.file.find(b"\n", self.position)
        return self.read(end + 1 - self.position)[:-1].decode("latin1")

    def raw(self, length: int) -> bytes | NDArray[np.uint8]:
        place = self.skip(length)
        return self.array[place] if length > _LARGE else self.file[place]

    def text(self, length: int) -> str:
        return self.read(length).decode("utf-8", "surrogatepass")

    def old_string(self, length: int) -> Any:
        content = self.raw(length)
        return content.decode() if isinstance(content, bytes) and content.isascii() else content

    def quoted(self) -> Any:
        line = self.line()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"":
            raise ValueError("a string without quotes")
        content = codecs.escape_decode(line[1:-1])[0]
        return content.decode() if content.isascii() else content

    def integer(self) -> int:
        line = self.line()
        return line == "01" if line in ("00", "01") else int(line.removesuffix("L"))

    # The stack

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("its marks do not match")
        return value

    def to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise ValueError("its marks do not match")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def get(self, index: int) -> None:
        value = self.memo[index]
        self.push(value.value if type(value) is Unbuilt and value.value is not None else value)

    def put(self, index: int) -> None:
        if self.stack[-1] is _MARK:
            raise ValueError("its marks do not match")
        self.memo[index] = self.stack[-1]

    def tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(hashable(items))

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a dict with a key without a value")
        self.top(dict).update(zip(hashable(items[::2]), items[1::2], strict=True))

    def dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"items of a {kind.__name__} without one")
        return self.stack[-1]

    # What stands for imports and calls

    def find_global(self, module: Any, name: Any) -> None:
        path = f"{module}.{name}"
        if path not in self.functions:
            raise RefusedError(f"asks for the global '{path}'")
        self.push(_Global(path))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        call = self.functions[function] if type(function) is _Global else None
        if call is None or type(arguments) is not tuple:
            raise RefusedError(f"calls {function if type(function) is _Global else type(function).__name__!r}")
        self.push(call(*arguments))

    def build(self) -> None:
        state, unbuilt = self.pop(), self.pop()
        if type(unbuilt) is not Unbuilt or type(state) is not tuple:
            raise RefusedError(f"sets the state of a {type(unbuilt).__name__}")
        unbuilt.value = unbuilt.build(*state)
        self.push(unbuilt.value)


def hashable(keys: list[Any]) -> list[Any]:
    """The keys of a dict or set, if they are plain.

    Raises:
        ValueError: naming the type of one that is not.
    """
    # Nested tuples could be made so deep that hashing them exhausts the C stack.
    for key in keys:
        if not isinstance(key, _HASHABLE):
            raise ValueError(f"a {type(key).__name__} as a key")
    return keys


_OBJECT_MAKERS = {
    getattr(pickle, name)[0]: name
    for name in (
        *("PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"),
        *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
    )
}

_ACTIONS: dict[int, Callable[[_Machine], Any]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: lambda m: m.number(1),
        pickle.FRAME: lambda m: m.number(8),
        pickle.MARK: lambda m: m.push(_MARK),
        pickle.POP: lambda m: m.stack.pop(),
        pickle.POP_MARK: lambda m: m.to_mark(),
        pickle.DUP: lambda m: m.push(m.stack[-1]),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.INT: lambda m: m.push(m.integer()),
        pickle.LONG: lambda m: m.push(m.integer()),
        pickle.BININT: lambda m: m.push(m.number(4, signed=True)),
        pickle.BININT1: lambda m: m.push(m.number(1)),
        pickle.BININT2: lambda m: m.push(m.number(2)),
        pickle.LONG1: lambda m: m.push(m.number(m.number(1), signed=True)),
        pickle.LONG4: lambda m: m.push(m.number(m.number(4), signed=True)),
        pickle.FLOAT: lambda m: m.push(float(m.line())),
        pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.read(8))[0]),
        pickle.STRING: lambda m: m.push(m.quoted()),
        pickle.BINSTRING: lambda m: m.push(m.old_string(m.number(4, signed=True))),
        pickle.SHORT_BINSTRING: lambda m: m.push(m.old_string(m.number(1))),
        pickle.SHORT_BINBYTES: lambda m: m.push(m.raw(m.number(1))),
        pickle.BINBYTES: lambda m: m.push(m.raw(m.number(4))),
        pickle.BINBYTES8: lambda m: m.push(m.raw(m.number(8))),
        pickle.BYTEARRAY8: lambda m: m.push(m.raw(m.number(8))),
        pickle.UNICODE: lambda m: m.push(m.line().encode("latin1").decode("raw-unicode-escape")),
        pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number(1))),
        pickle.BINUNICODE: lambda m: m.push(m.text(m.number(4))),
        pickle.BINUNICODE8: lambda m: m.push(m.text(m.number(8))),
        pickle.EMPTY_LIST: lambda m: m.push([]),
        pickle.EMPTY_DICT: lambda m: m.push({}),
        pickle.EMPTY_SET: lambda m: m.push(set()),
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.TUPLE1: lambda m: m.tuple(1),
        pickle.TUPLE2: lambda m: m.tuple(2),
        pickle.TUPLE3: lambda m: m.tuple(3),
        pickle.TUPLE: lambda m: m.push(tuple(m.to_mark())),
        pickle.LIST: lambda m: m.push(m.to_mark()),
        pickle.FROZENSET: lambda m: m.push(frozenset(hashable(m.to_mark()))),
        pickle.DICT: lambda m: m.dict(m.to_mark()),
        pickle.APPEND: lambda m: m.extend([m.pop()]),
        pickle.APPENDS: lambda m: m.extend(m.to_mark()),
        pickle.ADDITEMS: lambda m: m.add(m.to_mark()),
        pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        pickle.SETITEMS: lambda m: m.set_items(m.to_mark()),
        pickle.PUT: lambda m: m.put(m.integer()),
        pickle.BINPUT: lambda m: m.put(m.number(1)),
        pickle.LONG_BINPUT: lambda m: m.put(m.number(4)),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.GET: lambda m: m.get(m.integer()),
        pickle.BINGET: lambda m: m.get(m.number(1)),
        pickle.LONG_BINGET: lambda m: m.get(m.number(4)),
        pickle.GLOBAL: lambda m: m.find_global(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.stack_global(),
        pickle.REDUCE: lambda m: m.reduce(),
        pickle.BUILD: lambda m: m.build(),
    }.items()
}
