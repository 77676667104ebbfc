"""The numbers in a text, found and read all at once.

A million numbers take a tenth of what a JSON parser needs, since none becomes an object. Eight
characters are read as one 64-bit word: the decimal point is squeezed out, and three multiplications
add up the digits (the way of Lemire's simdjson, here with numpy's operations on many words).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PADDING = 8  # bytes that stand before and after the text, so that words may reach over its ends
WORD = 8  # characters that are read at once
_LONGEST = 32  # characters; no number that means something takes more
_U8, _U64 = np.uint8, np.uint64


def _every_byte(value: int) -> np.uint64:
    return _U64(value * 0x0101010101010101)


_ONES, _ZEROS, _HIGH_BITS = map(_every_byte, (0x01, ord("0"), 0x80))
_POINT = _every_byte(ord(".") ^ ord("0"))
# By the bits that stand before a decimal point in a word: 10 to the number of digits after it.
_DIVISORS = np.ones(57)
for _digits in range(1, 7):
    _DIVISORS[56 - 8 * _digits] = 10.0**_digits


@dataclass(frozen=True)
class Numbers:
    """The n longest runs of digits and points in a text.

    Attributes:
        starts: ``(n,)`` int64, where each begins.
        ends: ``(n,)`` int64, where each has ended.
        values: ``(n,)`` float64, the nearest to what is written, as any parser gives them; without
            meaning where the number is long or not valid.
        has_point: ``(n,)`` bool; without meaning where it is not valid.
        is_long: ``(n,)`` bool, of more than eight characters.
        is_valid: ``(n,)`` bool; whether it is a number as JSON writes them.
    """

    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray
    has_point: np.ndarray
    is_long: np.ndarray
    is_valid: np.ndarray


def pad(text: bytes) -> np.ndarray:
    """The text between :data:`PADDING` zeros at either end, uint8."""
    zeros = bytes(PADDING)
    return np.frombuffer(b"".join([zeros, text, zeros]), dtype=_U8)


def words_of(padded: np.ndarray) -> np.ndarray:
    """The eight bytes from every place on, little end first: a view, ``(len - 7,)`` uint64."""
    return np.ndarray((len(padded) - WORD + 1,), dtype="<u8", buffer=padded.data, strides=(1,))


def find_numbers(padded: np.ndarray) -> Numbers:
    """The numbers of a text from :func:`pad`. Signs and exponents are no part of them."""
    is_part = ((padded - _U8(ord("0"))) < 10) | (padded == _U8(ord(".")))
    edges = np.flatnonzero(is_part[1:] != is_part[:-1]) + 1
    starts, ends = np.ascontiguousarray(edges[0::2]), np.ascontiguousarray(edges[1::2])
    lengths = ends - starts
    words = words_of(padded)

    # In place where it can be: what is not allocated anew stays in the processor's cache.
    digits, points = _last_word(words, ends, lengths)
    exists = (points != 0).astype(_U64)
    before = points >> _U64(7)
    before -= exists  # all bits below the point
    divisors = _DIVISORS[np.bitwise_count(before)]
    through = points << _U64(1)
    through -= exists  # those below and those of the point itself
    before &= digits
    before <<= _U64(8)
    np.invert(through, out=through)
    digits &= through
    digits |= before
    values = _add_up(digits).astype(np.float64)
    values /= divisors

    is_long = lengths > WORD
    num_points = np.bitwise_count(points)
    for skipped in range(WORD, min(int(lengths.max(initial=0)), _LONGEST), WORD):
        some = np.flatnonzero(lengths > skipped)
        _, points = _last_word(words, ends[some] - skipped, lengths[some] - skipped)
        num_points[some] += np.bitwise_count(points)
    first = padded[starts] - _U8(ord("0"))
    has_second = (padded[starts + 1] - _U8(ord("0"))) < 10
    is_valid = (first < 10) & (padded[ends - 1] != _U8(ord("."))) & ((first != 0) | ~has_second)
    is_valid &= (num_points <= 1) & (lengths <= _LONGEST)
    return Numbers(starts, ends, values, num_points > 0, is_long, is_valid)


def _last_word(
    words: np.ndarray, ends: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The last eight characters of numbers, less ``"0"``, and the high bits of their points.

    What stands before a shorter number becomes zeros.
    """
    shift = ((WORD - np.minimum(lengths, WORD)) << 3).astype(_U64)
    digits = words[ends - WORD]
    digits ^= _ZEROS
    digits >>= shift
    digits <<= shift
    other = digits ^ _POINT
    points = other - _ONES
    np.invert(other, out=other)
    points &= other
    points &= _HIGH_BITS
    return digits, points


def _add_up(digits: np.ndarray) -> np.ndarray:
    """Eight digits, the first in the lowest byte, as numbers, in their place.

    Pairs of digits first, then fours, then all.
    """
    for factor, bits, mask in (
        (10, 8, 0x00FF00FF00FF00FF),
        (100, 16, 0x0000FFFF0000FFFF),
        (10_000, 32, 0x00000000FFFFFFFF),
    ):
        digits *= _U64(factor * 2**bits + 1)
        digits >>= _U64(bits)
        digits &= _U64(mask)
    return digits
