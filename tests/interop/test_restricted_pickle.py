"""Pickles as NumPy of either protocol and as attackers write them."""

import collections
import contextlib
import copyreg
import functools
import io
import operator
import os
import pickle
import pickletools
import random
import struct
import sys

import numpy as np
import pytest

from detector.interop.restricted_pickle import ForbiddenName, load_pickle


def loads(content: bytes):
    return load_pickle(io.BytesIO(content))


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_scalars_and_containers_come_back(protocol):
    generator = np.random.default_rng(0)
    arrays = {
        "f4": generator.normal(size=(3, 4, 2)).astype(np.float32),
        "f2": generator.normal(size=5).astype(np.float16),
        "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(generator.normal(size=(3, 4))),
        "transposed": generator.normal(size=(2, 3, 4)).transpose(1, 2, 0),
        "bool": np.array([True, False]),
        "text": np.array(["a", "bcd"]),
        "empty": np.zeros((0, 4), np.float32),
        "rank 0": np.array(2.5),
    }
    other = collections.OrderedDict(
        scalar=np.float32(1.5),
        integer=np.int64(-(2**40)),
        nested=[(1, 2.5, None, True), {"a": b"\x00\xff", b"b": "text"}, {1, 2}, frozenset({3})],
        bytes=bytearray(b"xyz"),
        complex=1 + 2j,
        long=1 << 100,
    )
    read = loads(pickle.dumps({"arrays": arrays, "other": other}, protocol))
    for name, array in arrays.items():
        assert type(read["arrays"][name]) is np.ndarray
        assert read["arrays"][name].dtype == array.dtype, name
        np.testing.assert_array_equal(read["arrays"][name], array, name)
    read["arrays"]["f4"] += 1  # writable
    assert read["other"] == dict(other)
    assert type(read["other"]) is dict
    assert type(read["other"]["scalar"]) is np.float32


@pytest.mark.parametrize("protocol", range(6))
def test_objects_in_arrays_are_read_by_the_same_rules(protocol):
    ragged = np.empty(2, object)
    ragged[0], ragged[1] = np.arange(3.0), np.zeros((2, 4), np.float32)
    read = loads(pickle.dumps([ragged], protocol))[0]
    assert [each.tolist() for each in read] == [[0, 1, 2], [[0] * 4] * 2]
    ragged[1] = Calls(os.getcwd)
    with pytest.raises(ForbiddenName, match="getcwd"):
        loads(pickle.dumps(ragged, protocol))


def test_arrays_as_python_2_wrote_them():
    # dumps({'a': np.array([1, 2], '<f4'), 'n': np.float64(.5)}, 2) of Python 2.7: byte strings
    # everywhere, the modules' old names, and elements as a byte string, too.
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    float32 = (
        b"cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    float64 = float32.replace(b"f4", b"f8")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x02\x85" + float32 + b"\x89" + text(np.array([1, 2], "<f4").tobytes()) + b"tb"
    )
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n" + float64 + text(np.float64(0.5).tobytes()) + b"\x86R"
    )
    content = b"\x80\x02}(" + text(b"a") + array + text(b"n") + scalar + b"u."
    pickletools.dis(content, out=io.StringIO())  # well-formed
    read = loads(content)
    np.testing.assert_array_equal(read["a"], np.array([1, 2], np.float32))
    assert read["n"] == 0.5


def test_shared_and_circular_containers():
    shared = np.arange(3)
    circle = [shared, {"again": shared}]
    circle.append(circle)
    read = loads(pickle.dumps(circle, 4))
    assert read[0] is read[1]["again"]
    assert read[2] is read


def test_what_names_functions_is_refused_by_name_and_not_called(tmp_path):
    trace = tmp_path / "ran"
    shell = f"touch {trace}"
    values = {
        "system": Calls(os.system, shell),
        "builtins.eval": Calls(eval, f"open({str(trace)!r}, 'w')"),
        "builtins.exec": Calls(exec, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "functools.partial": Calls(functools.partial(os.system, shell)),
        "operator.attrgetter": Calls(operator.attrgetter("system")),
        "io.open": Calls(open, trace, "w"),
        "random.Random": random.Random,
    }
    for protocol in range(6):
        for name, value in values.items():
            wanted = name if protocol > 2 else name.rpartition(".")[2]  # __builtin__ until then
            with pytest.raises(ForbiddenName, match=wanted):
                loads(pickle.dumps({"model": value}, protocol))
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x05numpy\x8c\x0ccore.numeric\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",  # dotted names of protocol 4
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        b"\x80\x02cnumpy\nsave\n.",
        b"\x80\x02cnumpy.core.multiarray\nfromstring\n.",
        b"\x80\x02cnumpy._core.multiarray._reconstruct\n__globals__\n.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02Pabc\n.",  # something kept elsewhere
        b"\x80\x02U\x03abcQ.",
        b"\x80\x02ccopyreg\n_reconstructor\n.",
    ],
)
def test_other_ways_to_a_name(content):
    with pytest.raises(ForbiddenName):
        loads(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\ndtype\n.",  # one of the functions as a value
        b"\x80\x02cnumpy\ndtype\n}U\x05_callU\x01xsb.",  # and changed
        b"\x80\x02cnumpy\ndtype\nN}U\x05_callU\x01xs\x86b.",
        b"\x80\x02cnumpy\ndtype\nU\x02f4\x85RN}U\x05dtypeU\x01xs\x86b.",
        b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",  # two gigabytes of zeros
        b"\x80\x02cnumpy\ndtype\nU\x05O,int\x85R.",
        b"\x80\x02cnumpy\ndtype\n}\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x02V8\x85R(K\x03U\x01|N(U\x01attN}U\x01aK\x00sJ\xff\x00\x00\x00K\x01K\x00tb.",
    ],
)
def test_misuse_of_what_is_allowed(content):
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError, ValueError)):
        loads(content)
    assert loads(pickle.dumps(np.arange(3), 2)).tolist() == [0, 1, 2]  # nothing was changed


def test_an_array_has_as_many_bytes_as_its_shape_needs():
    content = pickle.dumps(np.arange(300, dtype=np.int16), 2)
    assert content.count(b"M,\x01") == 1  # the number 300
    with pytest.raises(pickle.UnpicklingError, match=r"shape \(301,\) .* has 600 bytes"):
        loads(content.replace(b"M,\x01", b"M-\x01"))


def test_every_cut_is_an_error():
    content = pickle.dumps({"a": np.arange(4.0), "b": [1, "x"]}, 4)
    for length in range(len(content)):
        errors = pickle.UnpicklingError, EOFError, ValueError, IndexError, struct.error
        with pytest.raises(errors):
            loads(content[:length])


def test_altered_bytes_run_nothing():
    generator = random.Random(0)
    content = bytearray(pickle.dumps({"a": np.arange(4.0), "b": [np.float32(1), "x"]}, 2))
    modules = set(sys.modules)
    for _ in range(3000):
        altered = content.copy()
        for _ in range(generator.randint(1, 4)):
            altered[generator.randrange(len(altered))] = generator.randrange(256)
        with contextlib.suppress(Exception):  # the process lives, and nothing was imported
            loads(bytes(altered))
    assert set(sys.modules) == modules


def _nested(depth: int) -> bytes:
    """Opcodes of a tuple that holds a tuple twice, which holds one twice, ..."""
    again = (b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(depth))
    return b"K\x01\x85" + b"".join(again)


def _again(function: bytes, arguments: bytes, times: int = 2000) -> bytes:
    """A list of what ``function`` makes of the same arguments, again and again."""
    return (
        b"\x80\x02" + function + b"q\x00" + arguments + b"q\x01](" + b"h\x00h\x01R" * times + b"e."
    )


LONG = struct.pack("<I", 100_000) + b"x" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", id="room"),
        pytest.param(b"\x80\x02}" + _nested(200) + b"K\x01s.", id="hash of a key"),
        pytest.param(b"\x80\x02}(" + _nested(200) + b"K\x01u.", id="of one of many keys"),
        pytest.param(b"\x80\x04\x8f(" + _nested(200) + b"\x90.", id="of a set's element"),
        pytest.param(b"\x80\x04(" + _nested(200) + b"\x91.", id="of a frozen set's"),
        pytest.param(b"\x80\x02cbuiltins\nset\n]" + _nested(200) + b"a\x85R.", id="of a list's"),
        pytest.param(_nested(200) + b"Q.", id="text of a reference"),
        pytest.param(
            _again(b"c_codecs\nencode\n", b"X" + LONG + b"\x85"), id="the same bytes often"
        ),
        pytest.param(
            _again(
                b"cnumpy._core.multiarray\nscalar\n",
                b"cnumpy\ndtype\nU\x07S100000\x85RT" + LONG + b"\x86",
            ),
            id="the same array often",
        ),
    ],
)
def test_few_bytes_do_not_ask_for_much(content):
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        loads(content)


def test_numbers_of_copyreg_are_refused_though_something_known_has_them():
    copyreg.add_extension("os", "getcwd", 77)
    try:
        with pytest.raises(ForbiddenName, match="77"):
            loads(b"\x80\x02\x82M.")
    finally:
        copyreg.remove_extension("os", "getcwd", 77)
