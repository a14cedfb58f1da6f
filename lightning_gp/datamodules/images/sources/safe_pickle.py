"""Pickles from strangers: a reader that makes numpy arrays and plain containers and can do nothing else.

A pickle is a program. Python's own unpickler runs it, but here every name that the program may import stands for a
function of this module: those few that arrays need, in the spelling of numpy 1 and 2, of Python 2 and 3. Before
anything is read, :mod:`lightning_gp.datamodules.images.sources.pickle_scan` has looked at the program as a whole.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.images.sources.pickle_scan import scan

_PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufcSU]\d*")


def load_plain(path: str | os.PathLike[str]) -> Any:
    """What a pickle file holds, if that is arrays of numbers or text, scalars, strings and plain containers only.

    Args:
        path: the file; any pickle protocol, written by Python 2 or 3.

    Returns:
        The object. Arrays are read-only.

    Raises:
        ValueError: naming the file, and the global or instruction that was refused or that it is damaged.
        OSError: if the file cannot be read.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "x.pkl"
        ...     _ = file.write_bytes(pickle.dumps({"x": np.arange(3)}))
        ...     np.asarray(load_plain(file)["x"])
        array([0, 1, 2])
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                python2, maker = scan(content)
            try:
                loaded = _Unpickler(file, encoding="bytes").load()
            except _DAMAGE:
                loaded = None
                if maker is None:
                    raise
            if maker is not None:
                raise RefusedError(f"makes objects (pickle instruction {maker})")
            return _as_text(loaded) if python2 else loaded
    except RefusedError as error:
        raise ValueError(
            f"{path} is refused: it {error}, but only arrays, numbers, strings and plain containers are read. It is "
            "not the file that its name promises, and may be malicious: delete it and get it from a source you trust."
        ) from None
    except (*_DAMAGE, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again.") from None


_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    EOFError,
    struct.error,
    pickle.PickleError,
)


class RefusedError(Exception):
    """The file asks for more than data."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path not in _ADMITTED:
            raise RefusedError(f"asks for the global '{path}'")
        return _ADMITTED[path]


def _as_text(value: Any) -> Any:
    """What Python 2 wrote as ``str``: text if it is ASCII, else bytes, as keys and in lists and tuples."""
    if isinstance(value, bytes):
        return value.decode() if value.isascii() else value
    if isinstance(value, dict):
        return {_as_text(key): _as_text(item) for key, item in value.items()}
    return type(value)(map(_as_text, value)) if type(value) in (list, tuple) else value


class _Admitted:
    """A name that a pickle may use; ``call`` is what happens when it calls it."""

    __slots__ = ("call", "name")  # so that a pickle cannot give it attributes

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self.name, self.call = name, call

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise RefusedError(f"calls '{self.name}'")
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("sets the state of a global")


class _Dtype:
    """Stands for a dtype: numpy's own takes any state, such as flags that make it read numbers as addresses."""

    __slots__ = ("value",)

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise RefusedError(f"has an array of type {code!r}")
        self.value: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if subarray is not None or names is not None or fields is not None:
            raise RefusedError("has an array of records")
        order = order.decode() if isinstance(order, bytes) else order
        self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class _Array(np.ndarray):  # type: ignore[type-arg]
    """An array whose shape and content come after it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        content, shape, plain = _checked(content, shape, dtype)
        super().__setstate__((1, shape, plain.newbyteorder("="), bool(fortran), content))  # type: ignore[arg-type]
        if not plain.isnative:  # numpy would have swapped the bytes
            self.dtype = plain  # type: ignore[misc]
        self.flags.writeable = False


def _checked(content: Any, shape: Any, dtype: Any) -> tuple[bytes, tuple[int, ...], np.dtype[Any]]:
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, (bytes, bytearray)):
        raise RefusedError(f"has an array made from a {type(content).__name__}")
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(dtype, _Dtype) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError("an array without a type or shape")
    if dtype.value.itemsize == 0 or math.prod(shape) * dtype.value.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} made of {len(content)} bytes")
    return bytes(content), shape, dtype.value


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    content, shape, plain = _checked(content, shape, dtype)
    return np.frombuffer(content, plain).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    # This is how protocols 0 to 2 of Python 3 write bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"encodes a {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


def _bytes(content: Any = b"") -> bytes:
    if not isinstance(content, (bytes, bytearray)):
        raise RefusedError(f"makes bytes from a {type(content).__name__}")
    return bytes(content)


def _plain_keys(items: Any) -> list[Any]:
    keys = list(items)
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise ValueError(f"a {type(key).__name__} as a key")
    return keys


def _functions() -> dict[str, Callable[..., Any] | None]:
    functions: dict[str, Callable[..., Any] | None] = {
        "numpy.ndarray": None,
        "numpy.dtype": _Dtype,
        "_codecs.encode": _encode,
        "collections.OrderedDict": lambda items=(): {_plain_keys([k])[0]: v for k, v in items},
    }
    for core in ("numpy.core", "numpy._core"):
        functions[f"{core}.multiarray._reconstruct"] = lambda subtype, shape, code: _Array((0,), np.uint8)
        functions[f"{core}.multiarray.scalar"] = lambda dtype, content: _array(content, dtype, (1,), "C")[0].item()
        functions[f"{core}.numeric._frombuffer"] = _array
    for builtins in ("builtins", "__builtin__"):
        functions[f"{builtins}.bytes"] = functions[f"{builtins}.bytearray"] = _bytes
        functions[f"{builtins}.set"] = lambda items: set(_plain_keys(items))
        functions[f"{builtins}.frozenset"] = lambda items: frozenset(_plain_keys(items))
    return functions


_ADMITTED = {name: _Admitted(name, call) for name, call in _functions().items()}
