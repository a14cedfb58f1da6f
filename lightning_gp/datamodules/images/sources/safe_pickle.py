"""Pickles from strangers: a reader that makes numpy arrays and plain containers and can do nothing else.

A pickle is a program, and Python's own unpickler runs it: it may import and call anything. This one
(:mod:`lightning_gp.datamodules.images.sources.pickle_machine`) does not. The few names that arrays need, in the spelling of
numpy 1 and 2, of Python 2 and 3, stand for functions of this module.

Arrays are views of the memory-mapped file wherever it stores them as they are, so a file of gigabytes opens with
little memory.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.images.sources.pickle_machine import RefusedError, Unbuilt, hashable, run_pickle

_PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufcSU]\d*")


def load_plain(path: str | os.PathLike[str]) -> Any:
    """What a pickle file holds, if that is arrays of numbers or text, scalars, strings and plain containers only.

    Args:
        path: the file; any pickle protocol, written by Python 2 or 3.

    Returns:
        The object. Arrays are read-only; byte strings of more than 4096 bytes are arrays of uint8.

    Raises:
        ValueError: naming the file, and the global or instruction that was refused or that it is damaged.
        OSError: if the file cannot be read.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "x.pkl"
        ...     _ = file.write_bytes(pickle.dumps({"x": np.arange(3)}))
        ...     load_plain(file)
        {'x': array([0, 1, 2])}
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return run_pickle(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), _FUNCTIONS)
    except RefusedError as error:
        raise ValueError(
            f"{path} is refused: it {error}, but only arrays, numbers, strings and plain containers are read. It is "
            "not the file that its name promises, and may be malicious: delete it and get it from a source you trust."
        ) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again.") from None


def _dtype(code: Any, *_: Any) -> Unbuilt:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
        raise RefusedError(f"has an array of type {code!r}")
    dtype = np.dtype(code)

    def build(version: Any, order: Any, subarray: Any, names: Any, fields: Any, *_: Any) -> np.dtype[Any]:
        if subarray is not None or names is not None or fields is not None:
            raise RefusedError("has an array of records")
        return dtype.newbyteorder(order)

    return Unbuilt(build)


def _bytes_like(content: Any) -> bytes | NDArray[np.uint8]:
    # Python 2 wrote bytes as `str`, which the machine takes for text if they happen to be ASCII.
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, bytes) and not (isinstance(content, np.ndarray) and content.dtype == np.uint8):
        raise RefusedError(f"has an array made from a {type(content).__name__}")
    return content


def _array(version: Any, shape: Any, dtype: Any, fortran: Any, content: Any) -> NDArray[Any]:
    content = _bytes_like(content)
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(dtype, np.dtype) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError("an array without a type or shape")
    if dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} made of {len(content)} bytes")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    array.flags.writeable = False
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    # This is how protocols 0 to 2 of Python 3 write bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"encodes a {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return dict(zip(hashable([key for key, _ in items]), [value for _, value in items], strict=True))


def _functions() -> dict[str, Callable[..., Any] | None]:
    functions: dict[str, Callable[..., Any] | None] = {
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        "_codecs.encode": _encode,
        "collections.OrderedDict": _ordered_dict,
    }
    for core in ("numpy.core", "numpy._core"):
        functions[f"{core}.multiarray._reconstruct"] = lambda subtype, shape, code: Unbuilt(_array)
        functions[f"{core}.multiarray.scalar"] = lambda dtype, content: _array(1, (1,), dtype, False, content)[0].item()
        functions[f"{core}.numeric._frombuffer"] = lambda content, dtype, shape, order: _array(
            1, shape, dtype, order == "F", content
        )
    for builtins in ("builtins", "__builtin__"):
        functions[f"{builtins}.bytes"] = functions[f"{builtins}.bytearray"] = lambda c=b"": bytes(_bytes_like(c))
        functions[f"{builtins}.set"] = lambda items: set(hashable(items))
        functions[f"{builtins}.frozenset"] = lambda items: frozenset(hashable(items))
    return functions


_FUNCTIONS = _functions()
