"""Pickles of numbers, texts, plain containers and NumPy arrays, and of nothing else.

A pickle is a program: it names callables and calls them while it is being read, so that one from a
stranger may do anything. Here a name is looked up in a short table instead of being imported, and
what the table has are not the functions of that name but checked stand-ins without state of their
own: a pickle that wants anything else is refused before that is found, let alone called.

A few bytes may ask for much, too: for room for what does not follow, for the same array again and
again, for the hash or the text of tuples within tuples. Such pickles are refused as well.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

# Numbers, booleans, texts and dates of fixed size: elements are bytes without references.
PLAIN_KINDS = "biufcSUMm"
# Elements that what is made of a pickle's content may have, for each of its bytes, and besides.
# Arrays have one byte for one, and nothing is made of the same content twice.
PER_BYTE, BESIDES = 4, 1 << 20
# Elements of a tuple that is a key, those of tuples in it counted.
KEY_ELEMENTS = 100
MAX_DIMENSIONS = 64  # NumPy's own limit


class ForbiddenName(pickle.UnpicklingError):
    """The pickle names a class or function that it has no need of."""


def load_pickle(
    file: BinaryIO, also: Mapping[tuple[str, str], Callable[..., Any]] | None = None
) -> Any:
    """Reads one pickle of protocol 0 to 5.

    Byte strings of Python 2 become texts by Latin-1, as NumPy's arrays of that time need.

    Args:
        file: open for reading in binary.
        also: by module and name, what is to be called instead of other things that are expected;
            it gets whatever arguments the pickle has.

    Returns:
        Numbers, texts, bytes, arrays, and lists, tuples, sets and dicts of them; an
        ``OrderedDict`` becomes a ``dict``.

    Raises:
        ForbiddenName: the pickle wants something else; the message says what.
        pickle.UnpicklingError, EOFError, and what else malformed bytes cause.
    """
    unpickler = _Unpickler(file, encoding="latin1")
    unpickler.allowed = _ALLOWED | dict(also or {})
    unpickler.left = PER_BYTE * _num_bytes(file) + BESIDES
    return _plain(unpickler.load(), {})


def _num_bytes(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here


# Python's own unpickler in Python: the one in C reserves gigabytes for a single altered byte, the
# place of a value in its memo.
class _Unpickler(pickle._Unpickler):
    allowed: dict[tuple[str, str], Callable[..., Any]]
    left: int
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        # Python 3 puts what Python 2 calls __builtin__ into builtins; NumPy 2 moved its core.
        place = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (place, name) not in self.allowed:
            raise ForbiddenName(f"{module}.{name}")
        return _StandIn(self.allowed[place, name], self)

    def persistent_load(self, reference: Any) -> Any:
        raise ForbiddenName(f"an object kept outside the pickle ({_named(reference)})")

    def get_extension(self, code: int) -> None:
        raise ForbiddenName(f"what copyreg has under the number {code}")

    def spend(self, made: Any) -> None:
        """Counts the elements of what was made."""
        made = made.array if isinstance(made, _Array) else made
        if isinstance(made, np.ndarray | np.generic):  # bytes among the latter
            self.left -= made.nbytes
        elif isinstance(made, bytes | set | frozenset | dict):
            self.left -= len(made)
        if self.left < 0:
            raise pickle.UnpicklingError("it makes far more of its content than there is")

    def load_build(self) -> None:
        super().load_build()
        self.spend(self.stack[-1])

    def load_bytearray8(self) -> None:
        # The inherited one fills as many bytes as it is told before it reads any.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    for _opcode, _load in (
        (pickle.BUILD, load_build),
        (pickle.BYTEARRAY8, load_bytearray8),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
    ):
        dispatch[_opcode[0]] = _load
    del _opcode, _load


def _check_keys(keys: Iterable[Any]) -> None:
    """Tuples that hold one tuple twice, which does likewise, take forever to hash and to print."""
    for key in keys:
        count, waiting = 0, [key]
        while waiting:
            part = waiting.pop()
            if isinstance(part, tuple | frozenset):
                count += len(part)
                if count > KEY_ELEMENTS:
                    raise pickle.UnpicklingError(f"a key has more than {KEY_ELEMENTS} elements")
                waiting.extend(part)


def _named(value: Any) -> str:
    """For messages: a number or text, or what else it is; a container's text may have no end."""
    if isinstance(value, str | bytes):
        return repr(value[:80])
    return repr(value) if isinstance(value, bool | float) else type(value).__name__


class _StandIn:
    """Calls ``function``; a pickle cannot change it, having no attributes that could be set."""

    __slots__ = ("_call", "_unpickler")

    def __init__(self, function: Callable[..., Any], unpickler: _Unpickler) -> None:
        object.__setattr__(self, "_call", function)
        object.__setattr__(self, "_unpickler", unpickler)

    def __call__(self, *arguments: Any) -> Any:
        result = self._call(*arguments)
        self._unpickler.spend(result)
        return result

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle sets {name} of a function")


class _Dtype:
    """A ``numpy.dtype`` in the making: its name, then its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any) -> None:
        if not isinstance(name, str):
            raise pickle.UnpicklingError(f"a dtype is named by {type(name).__name__}, not by text")
        dtype = np.dtype(name)
        if dtype.kind not in PLAIN_KINDS + "O" or dtype.subdtype is not None:
            raise pickle.UnpicklingError(f"arrays of dtype {name!r} are not read")
        object.__setattr__(self, "dtype", dtype)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, subdtype, names, fields, size, alignment, flags[, metadata])
        order, subdtype, names, fields = state[1:5]
        if any(part is not None for part in (subdtype, names, fields)):
            raise pickle.UnpicklingError("arrays of records are not read")
        if order in ("<", ">"):
            object.__setattr__(self, "dtype", self.dtype.newbyteorder(order))

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle sets {name} of a dtype")


class _Array:
    """A ``numpy.ndarray`` in the making; :func:`_plain` puts the array into its place."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray | None = None) -> None:
        object.__setattr__(self, "array", np.zeros(0, np.int8) if array is None else array)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        order = "F" if is_fortran is True or is_fortran == 1 else "C"
        object.__setattr__(self, "array", _build(content, dtype, shape, order))

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle sets {name} of an array")


def _build(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """The array of ``content``: bytes of the elements, or for objects the list of them."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array's dtype is no dtype")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise pickle.UnpicklingError("an array's shape is not of whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f"an array has {len(shape)} dimensions")
    size = math.prod(shape)
    if dtype.dtype.kind == "O":
        if not isinstance(content, list) or len(content) != size:
            raise pickle.UnpicklingError(f"an array of shape {shape} has other elements")
        array = np.empty(size, object)
        for place, element in enumerate(content):
            array[place] = element
        return array.reshape(shape, order=order)
    if isinstance(content, str):  # Python 2
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array's elements are {type(content).__name__}")
    if len(content) != size * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(
            f"an array of shape {shape} and dtype {dtype.dtype} has {len(content)} bytes"
        )
    # A copy, since an array over the bytes of a pickle could not be written to.
    flat = np.frombuffer(content, dtype.dtype).copy() if size else np.zeros(0, dtype.dtype)
    return flat.reshape(shape, order=order)


def _dtype(name: Any, *_: Any) -> _Dtype:
    return _Dtype(name)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    """How protocol 5 writes arrays; with ``order`` K they are transposed by ``axes``."""
    array = _build(content, dtype, shape, "F" if order == "F" else "C")
    return _Array(array.transpose(axes) if order == "K" and axes is not None else array)


def _scalar(dtype: Any, content: Any) -> Any:
    return _build(content, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes in Python 3."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes are encoded by {_named(encoding)}")
    return text.encode("latin1")


def _bytes(content: Any = b"", *encoding: Any) -> bytes:
    if encoding:
        return _encode(content, *encoding)
    if not isinstance(content, bytes):  # a number would reserve as many bytes
        raise pickle.UnpicklingError(f"bytes are made from {type(content).__name__}")
    return content


def _ordered_dict(items: Any = ()) -> collections.OrderedDict:
    """Of pairs in a list, as the first protocols write them."""
    if not isinstance(items, list | tuple):
        raise pickle.UnpicklingError(f"a dict is made from {type(items).__name__}")
    pairs = [tuple(item) for item in items]
    _check_keys(pair[0] for pair in pairs)
    return collections.OrderedDict(pairs)


def _set(elements: Any = ()) -> set:
    if not isinstance(elements, list | tuple):
        raise pickle.UnpicklingError(f"a set is made from {type(elements).__name__}")
    _check_keys(elements)
    return set(elements)


def _frozenset(elements: Any = ()) -> frozenset:
    return frozenset(_set(elements))


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytes,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _reconstruct,
    ("numpy", "dtype"): _dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


def _plain(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """``value`` with arrays in the place of those in the making, and without subclasses.

    Args:
        value: what the unpickler made.
        done: by their ids, containers and what has replaced them: the same object may stand in
            many places, and a list may contain itself. Those replaced are kept, too, lest another
            object get their id.

    Raises:
        pickle.UnpicklingError: there is something else in it, such as one of the functions.
    """
    if isinstance(value, _Array):
        value = value.array
    if isinstance(value, bytearray):
        value = bytes(value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return value
    if id(value) in done:
        return done[id(value)][1]
    kind = type(value)
    if kind is np.ndarray:
        done[id(value)] = value, value
        if value.dtype.kind == "O":
            flat = value.reshape(-1)
            for place, element in enumerate(flat):
                flat[place] = _plain(element, done)
        return value
    if kind is list:
        done[id(value)] = value, value
        value[:] = [_plain(element, done) for element in value]
        return value
    if kind in (dict, collections.OrderedDict):
        result: dict[Any, Any] = {}
        done[id(value)] = value, result
        for key, element in dict.items(value):
            result[_plain(key, done)] = _plain(element, done)
        return result
    if kind in (tuple, set, frozenset):
        result = kind(_plain(element, done) for element in value)
        done[id(value)] = value, result
        return result
    raise pickle.UnpicklingError(f"it holds a {kind.__name__.strip('_')} where values belong")
