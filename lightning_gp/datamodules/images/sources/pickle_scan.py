"""Looks at a pickle without running it: what it would make, and whether it asks for more than the file has.

Python's unpickler reserves the memory that a file asks for, and hashes keys however deep they are nested. So lengths
are checked against the file here, places in the memo against the number of instructions, and keys must be no tuples.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Iterator

_LENGTHS = {  # of arguments that say how long they are: bytes of the length, whether it has a sign
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}
_LONGEST_NUMBER = 4000  # digits; Python refuses or takes long for more
_MAKERS = {
    *("PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"),
    *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
}
_MARK = -1


class _Kind:
    """What the scan must know of an instruction, found out once: looking at pickletools each time is slow."""

    def __init__(self, info: pickletools.OpcodeInfo) -> None:
        self.name = info.name
        self.size = 0 if info.arg is None else info.arg.n
        self.lines = 2 if info.name in ("GLOBAL", "INST") else 1
        before = [item is pickletools.markobject for item in info.stack_before]
        self.marked = True in before
        self.pops = before.index(True) if self.marked else len(before)
        self.pushes = len(info.stack_after)
        self.makes_tuple = info.name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


_KINDS = {ord(info.code): _Kind(info) for info in pickletools.opcodes}


def scan(file: mmap.mmap) -> tuple[bool, str | None]:
    """Whether Python 2 wrote the file, and the first instruction in it that makes objects.

    Raises:
        ValueError: if it is damaged, or asks for more than the file has.
    """
    stack: list[int] = []  # for each item: 1 for a tuple, 0 for anything else, _MARK
    memo: dict[int, int] = {}
    python2, maker = False, None
    for count, (kind, argument) in enumerate(_instructions(file)):
        name = kind.name
        maker = name if maker is None and name in _MAKERS else maker
        python2 = python2 or name in ("STRING", "BINSTRING", "SHORT_BINSTRING")
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if name == "MEMOIZE" else _place(kind, argument)
            if place > count or not stack:
                raise ValueError(f"it puts something into place {place} after {count} instructions")
            memo[place] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[_place(kind, argument)])
        else:
            items = _popped(stack, kind)
            if name in ("SETITEM", "SETITEMS", "DICT"):
                _check_keys(items[1::2] if name == "SETITEM" else items[::2])
                if name != "SETITEM" and len(items) % 2:
                    raise ValueError("a dict with a key without a value")
            elif name in ("ADDITEMS", "FROZENSET"):
                _check_keys(items)
            stack += [items[0] if name == "DUP" else int(kind.makes_tuple)] * kind.pushes
    return python2, maker


def _popped(stack: list[int], kind: _Kind) -> list[int]:
    """Takes off the stack what an instruction works on: up to the mark, if it has one."""
    items: list[int] = []
    if kind.marked:
        while stack and stack[-1] != _MARK:
            items.append(stack.pop())
        if not stack:
            raise ValueError("its marks do not match")
        stack.pop()
        items.reverse()
    if len(stack) < kind.pops or (_MARK in stack[-kind.pops :] and kind.pops and kind.name != "POP"):
        raise ValueError("its marks do not match")
    below = stack[len(stack) - kind.pops :]
    del stack[len(stack) - kind.pops :]
    return items if kind.marked else below


def _check_keys(keys: list[int]) -> None:
    if 1 in keys:  # they could be nested so deep that hashing them exhausts the C stack
        raise ValueError("a tuple as a key")


def _place(kind: _Kind, argument: bytes) -> int:
    return int.from_bytes(argument, "little") if kind.size >= 0 else int(argument)


def _instructions(file: mmap.mmap) -> Iterator[tuple[_Kind, bytes]]:
    """Each instruction and, where it is short, the bytes of its argument; ends behind STOP."""
    position, end = 0, len(file)
    while position < end:
        kind = _KINDS.get(file[position])
        if kind is None:
            raise ValueError(f"no pickle instruction at byte {position}")
        position += 1
        start = position
        if kind.size >= 0:
            position += kind.size
        elif kind.size == pickletools.UP_TO_NEWLINE:
            for _ in range(kind.lines):
                position = file.find(b"\n", position) + 1
                if not position:
                    raise ValueError("it ends too early")
            if kind.name in ("INT", "LONG") and position - start > _LONGEST_NUMBER:
                raise ValueError(f"a number of {position - start} digits")
        else:
            size, signed = _LENGTHS[kind.size]
            length = int.from_bytes(file[start : start + size], "little", signed=signed)
            if length < 0:
                raise ValueError("a negative length")
            position += size + length
        if position > end:
            raise ValueError("it ends too early")
        yield kind, file[start:position] if position - start < 16 else b""
        if kind.name == "STOP":
            return
    raise ValueError("it ends too early")
