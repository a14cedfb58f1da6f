"""Pickles are read as data: what circulates comes out whole, what would run code does not run."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from lightning_gp.datamodules.images.sources.safe_pickle import load_plain

PLAIN = {
    "image_data": np.random.default_rng(0).integers(0, 255, (3, 50, 40, 3), dtype=np.uint8),  # larger than one frame
    "class_dict": {"a": [1, 2, 3], "b": np.arange(4), "empty": []},
    b"bytes": [
        1.5,
        -3,
        255,
        65535,
        2**80,
        -(2**900),
        None,
        True,
        False,
        "é",
        "line\nbreak",
        b"\xff" * 3,
        b"",
        b"x" * 9999,
    ],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, frozenset({3}), [], {}],
    "scalars": [np.float32(2.5), np.int64(7), np.bool_(True)],
    "names": np.array(["a", "bc"]),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big endian": np.arange(3, dtype=">i4"),
    "no rows": np.zeros((0, 3)),
    "zero dimensions": np.array(5, dtype=np.int16),
    "truth": np.array([True, False]),
    "ordered": collections.OrderedDict(a=1, b=2),
}


def write(path, content):
    path.write_bytes(content)
    return path


def same(a, b):
    if isinstance(a, np.ndarray):
        return b.dtype == a.dtype and b.shape == a.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bytes) and isinstance(b, np.ndarray):
        return a == b.tobytes()
    return a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_out_as_they_went_in(tmp_path, protocol):
    loaded = load_plain(write(tmp_path / "x.pkl", pickle.dumps(PLAIN, protocol)))
    assert same(PLAIN, loaded)
    assert not loaded["image_data"].flags.writeable


@pytest.mark.parametrize("protocol", [2, 4])
def test_shared_objects_stay_shared(tmp_path, protocol):
    array, names = np.arange(5), ["x"]
    loaded = load_plain(write(tmp_path / "x.pkl", pickle.dumps([array, names, array, names], protocol)))
    assert loaded[0] is loaded[2]
    assert loaded[1] is loaded[3]


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_both_spellings_of_numpy(tmp_path, core):
    content = pickle.dumps(np.arange(4, dtype=np.int32), 2)
    content = content.replace(b"numpy._core", core).replace(b"numpy.core", core)
    assert core in content
    np.testing.assert_array_equal(load_plain(write(tmp_path / "x.pkl", content)), np.arange(4))


def python2_array(array):
    """Protocol 2 as numpy 1 wrote it under Python 2: module numpy.core, bytes as str, plain str for names."""

    def text(value):
        return b"U" + struct.pack("<B", len(value)) + value

    shape = b"(" + b"".join(b"K" + bytes([n]) for n in array.shape) + b"t"
    code = array.dtype.str[1:].encode()
    data = array.tobytes()
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R",
            b"(K\x01" + shape + b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R",
            b"(K\x03" + text(array.dtype.str[:1].encode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", len(data)) + data + b"tb",
        ]
    )


@pytest.mark.parametrize("fill", [None, 65])  # 65: bytes that are also ASCII text
@pytest.mark.parametrize("shape", [(2, 3), (2, 60, 50)])
def test_python_2_files(tmp_path, shape, fill):
    images = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    images = images if fill is None else np.full_like(images, fill)
    key = b"U\x0aimage_data"
    content = b"\x80\x02}(" + key + python2_array(images) + b"U\x03\xe9t\xe9K\x01u."
    pickletools.dis(content, io.StringIO())  # a valid pickle
    loaded = load_plain(write(tmp_path / "x.pkl", content))
    np.testing.assert_array_equal(loaded["image_data"], images)
    assert loaded[b"\xe9t\xe9"] == 1
    reference = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(reference["image_data"], images)


class Calls:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class State:
    """Pickles to an object with a state."""

    def __init__(self):
        self.secret = 1


def evil(path):
    return [
        (Calls(os.system, f"touch {path}"), r"(posix|nt)\.system"),
        (Calls(eval, f"open({str(path)!r}, 'w')"), r"builtins.eval|__builtin__.eval"),
        (Calls(exec, f"open({str(path)!r}, 'w')"), r"builtins.exec|__builtin__.exec"),
        (Calls(open, str(path), "w"), r"(_?io|builtins|__builtin__)\.open"),
        (Calls(getattr, Calls(getattr, "x", "join"), "__class__"), r"getattr"),
        (Calls(np.load, str(path)), r"numpy.*load"),
        (Calls(np.memmap, str(path), "uint8", "w+", 0, (1,)), r"numpy.*memmap"),
        (Calls(np.fromfile, str(path)), r"numpy.*fromfile"),
        (Calls(__import__, "os"), r"__import__"),
        (Calls(map, print, [1]), r"map|itertools"),
        (Calls(list, (1,)), r"list"),
        (np.array([Calls(os.system, f"touch {path}"), None]), r"'O8'|system"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", "O")]), r"'V12'|'V16'|type"),
        ({"image_data": [1, Calls(os.system, f"touch {path}")]}, r"system"),
        (State(), r"State|copyreg|copy_reg"),
        (range(3), r"range"),
        (np.random.default_rng(0), r"numpy.random"),
        (np.datetime64("2020-01-01"), r"M8"),
    ]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_else_is_admitted_and_nothing_runs(tmp_path, protocol):
    target = tmp_path / "was_here"
    for number, (thing, name) in enumerate(evil(target)):
        path = write(tmp_path / f"evil{number}.pkl", pickle.dumps(thing, protocol))
        with pytest.raises(ValueError, match=rf"evil{number}\.pkl is refused: it .*({name}).*malicious"):
            load_plain(path)
        assert not target.exists()


BY_HAND = {
    "INST": (b"(S'true'\nios\nsystem\n.", "asks for the global 'os.system'"),
    "OBJ": (b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.", "asks for the global 'os.system'"),
    "NEWOBJ": (b"\x80\x02cnumpy\nndarray\n)\x81.", "pickle instruction NEWOBJ"),
    "EXT1": (b"\x80\x02\x82\x01.", "pickle instruction EXT1"),
    "PERSID": (b"Pabc\n.", "pickle instruction PERSID"),
    "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", r"numpy.ndarray.dump"),
    "submodule": (b"\x80\x02cnumpy.f2py.crackfortran\nmyeval\n.", r"numpy.f2py.crackfortran.myeval"),
    "call of a class": (b"\x80\x02cnumpy\nndarray\n(K\x09tR.", "calls 'numpy.ndarray'"),
    "state of a global": (b"\x80\x02cnumpy\nndarray\nK\x01\x85b.", "sets the state of a global"),
    "another codec": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        "encodes a str as 'zip'",
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_instructions_that_make_or_change_objects(tmp_path, case):
    content, message = BY_HAND[case]
    with pytest.raises(ValueError, match=rf"x\.pkl is refused: it .*{message}"):
        load_plain(write(tmp_path / "x.pkl", content))


def array_of(shape, data=b"abc", code=b"u1"):
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
    dtype = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R(K\x03U\x01|NNNK\x00K\x00K\x00tb"
    return head + dtype + b"\x89U" + bytes([len(data)]) + data + b"tb."


DAMAGED = {
    "global that is not text": b"\x80\x04K\x01K\x02\x93.",
    "call of a result": b"\x80\x02K\x01)R.",
    "state of a list": b"\x80\x02]}b.",
    "far place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "array of more than it has": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    + b"J\xff\xff\xff\x7f\x85U\x01b\x87RK\x00b.",
    "empty": b"",
    "no pickle": b"\xff\xd8\xff\xe0",
    "html": b"<!DOCTYPE html><html>",
    "claims much": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "claims text": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "huge shape": array_of(b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85"),
    "negative shape": array_of(b"J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
    "wrong shape": array_of(b"K\x02\x85"),
    "shape of text": array_of(b"U\x01a\x85"),
    "huge type": array_of(b"K\x01\x85", code=b"U" + b"9" * 30),
    "no such type": array_of(b"K\x01\x85", code=b"i7"),
    "empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "mark as a result": b"\x80\x02(.",
    "unknown memo": b"\x80\x02h\x07.",
    "list as a key": b"\x80\x02}]K\x01s.",
    "tuple as a key": b"\x80\x02})K\x01s.",
    "odd dict": b"\x80\x02}(K\x01u.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "long number": b"I" + b"9" * 5000 + b"\n.",
    "endless line": b"I" + b"9" * 50,
    "string without quotes": b"Sabc\n.",
    "not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(tmp_path, case):
    with pytest.raises(ValueError, match=r"x\.pkl is truncated or damaged \(.*fetch it again"):
        load_plain(write(tmp_path / "x.pkl", DAMAGED[case]))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_truncation_is_noticed(tmp_path, protocol):
    content = pickle.dumps({"x": np.arange(6, dtype=np.uint8), "names": ["a", b"b"], "big": 2**70}, protocol)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"x\.pkl is truncated or damaged"):
            load_plain(write(tmp_path / "x.pkl", content[:length]))


def test_random_damage_only_ever_raises_value_error(tmp_path):
    content = pickle.dumps(PLAIN["class_dict"] | {"names": PLAIN["names"], "s": PLAIN["scalars"]}, 4)
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(ValueError):
            load_plain(write(tmp_path / "x.pkl", bytes(damaged)))


def test_nesting_does_not_exhaust_the_stack(tmp_path):
    depth = 50_000
    loaded = load_plain(write(tmp_path / "x.pkl", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    assert isinstance(loaded, list)
    with pytest.raises(ValueError, match="a tuple as a key"):
        load_plain(write(tmp_path / "y.pkl", b"\x80\x02})" + b"\x85" * depth + b"K\x01s."))


def test_large_arrays_stay_in_the_file(tmp_path):
    path = write(tmp_path / "x.pkl", pickle.dumps(np.zeros((50, 1000), np.uint8), 4))
    array = load_plain(path)
    while isinstance(array.base, np.ndarray):
        array = array.base
    assert array.base is not None  # the mapped file, not memory of its own
    assert not array.flags.owndata


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_plain(tmp_path / "absent.pkl")
