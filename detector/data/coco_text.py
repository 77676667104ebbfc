"""COCO annotation records read from the file's text, without a Python object for any of them.

The program that wrote a file gave every record the same keys in the same order with the same
spaces: between two records of a file nothing differs but the numbers, and how many a polygon has.
So a few records are parsed, and of all others it is enough to see that they have the same text
around their numbers. Records that differ (run lengths in place of polygons, a number like
``1e-5``) are parsed one by one; where many do, or the text is no JSON, the piece is left to the
parser.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.coco_bulk import RecordColumns, columns_of
from detector.data.coco_masks import can_be_parts, join_parts, make_parts
from detector.data.json_files import parse_text
from detector.data.number_text import PADDING, WORD, find_numbers, pad, words_of

_FIELDS = ("id", "image_id", "category_id", "iscrowd", "bbox")
_TRIED_RECORDS = 32  # of the first piece; how most of them are written
_MOST_ODD = 0.2  # of the records of a piece; more are faster all together
_MOST_LONG = 0.05  # of the numbers that are wanted
_MAX_FAILURES = 3  # pieces in a row, after which the rest of the file is left to the parser
_SMALLEST_PART = 6  # numbers
_EXACT_DIGITS = 15


@dataclass(frozen=True)
class TextRecords:
    """Records in a text that is sound JSON.

    Attributes:
        text: of the records, with what separates them.
        columns: what they say.
    """

    text: bytes
    columns: RecordColumns

    def __len__(self) -> int:
        return len(self.columns)

    def parse(self) -> list[dict]:
        """The records one by one."""
        return parse_text(b"[%b]" % self.text)


@dataclass(frozen=True)
class RecordLayout:
    """The text around the numbers of a record.

    The polygons stand at one place among the *single* numbers, those that every record has as many
    of.

    Attributes:
        comma: between two numbers of a list, and between two records.
        gaps: what stands before each single number, from the one before on; the first from the
            record's begin on. Where the polygons stand between, only what follows them.
        opening: what stands before the polygons' first number, likewise.
        tail: from the last number to the end of the record.
        num_before: single numbers before the polygons; all, if records have none.
        fields: places among the single numbers, by key.
    """

    comma: bytes
    gaps: tuple[bytes, ...]
    opening: bytes | None
    tail: bytes
    num_before: int
    fields: dict[str, list[int]]

    @property
    def separator(self) -> bytes:
        """From one record's last character to the next one's first."""
        return b"}" + self.comma + b"{"

    @property
    def part_break(self) -> bytes:
        """Between two parts of a polygon."""
        return b"]" + self.comma + b"["


class RecordScanner:
    """Takes pieces of one file's list of annotations; the first shows how it is written."""

    def __init__(self) -> None:
        self._layout: RecordLayout | None = None
        self._failures = 0

    def __call__(self, text: bytes) -> TextRecords | None:
        """The records of a text, from the first one's brace to the last one's.

        Returns:
            ``None``: they are not of the kind, or not JSON; the parser will say.
        """
        if self._failures >= _MAX_FAILURES:
            return None
        self._layout = self._layout or learn_layout(text)
        columns = None if self._layout is None else _Piece(text, self._layout).columns()
        self._failures = self._failures + 1 if columns is None else 0
        return None if columns is None else TextRecords(text, columns)


def learn_layout(text: bytes) -> RecordLayout | None:
    """How the records of a text are written, if it is a way that is known."""
    found = re.search(rb"[\]\w\"](,\s*)\"", text)
    comma = found[1] if found else b""
    if comma not in (b",", b", "):
        return None
    found_in: dict[tuple, list[RecordLayout]] = {}
    # Without the first and the last brace the text falls into records that lack both.
    for inside in text[1:-1].split(b"}" + comma + b"{", _TRIED_RECORDS)[:_TRIED_RECORDS]:
        record = b"{%b}" % inside
        layout = _layout_of(record, comma)
        if layout is not None:
            key = (layout.gaps, layout.opening, layout.tail, layout.num_before)
            found_in.setdefault(key, []).append(layout)
    return max(found_in.values(), key=len)[0] if found_in else None


def _layout_of(text: bytes, comma: bytes) -> RecordLayout | None:
    try:
        record = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return None
    columns = columns_of([record])
    # What is taken for a polygon or a box must be one, also where all records are odd alike.
    if columns is None or columns.runs:
        return None
    values: list[Any] = []  # all numbers in order
    fields: dict[str, list[int]] = {}
    num_before, num_polygon = None, 0
    for key, value in record.items():
        numbers = _numbers_in(value)
        if key == "segmentation" and numbers:
            num_before, num_polygon = len(values), len(numbers)
        else:
            place = len(values) - num_polygon
            fields[key] = list(range(place, place + len(numbers)))
        values += numbers
    tokens = list(re.finditer(rb"[0-9.]+", text))
    # Each of them is a number of its own: so there are no digits in keys, and no exponents.
    if len(tokens) != len(values) or not all(
        _spells(token[0], value) for token, value in zip(tokens, values, strict=True)
    ):
        return None
    # The sign of a zero would become a part of the text around it.
    if any(text[token.start() - 1 : token.start()] == b"-" for token in tokens):
        return None
    wanted = {key: fields.get(key, []) for key in _FIELDS}
    ends = [0, *(token.end() for token in tokens)]
    gaps = [text[end : token.start()] for end, token in zip(ends, tokens, strict=False)]
    opening = None
    if num_before is not None:
        opening = gaps[num_before]
        part_break = b"]" + comma + b"["
        if not set(gaps[num_before + 1 : num_before + num_polygon]) <= {comma, part_break}:
            return None
        del gaps[num_before : num_before + num_polygon]
    layout = RecordLayout(
        comma, tuple(gaps), opening, text[ends[-1] :],
        len(gaps) if num_before is None else num_before, wanted,
    )  # fmt: skip
    return None if any(layout.separator in gap for gap in gaps) else layout


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose values stand in the order of the text; keys that come twice have none."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key comes twice")
    return record


def _numbers_in(value: Any) -> list[int | float]:
    """All numbers of a value in the order of the text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in _numbers_in(each)]
    return [value] if type(value) in (int, float) else []


def _spells(text: bytes, value: Any) -> bool:
    try:
        return json.loads(text) == value
    except ValueError:
        return False


class _Piece:
    """A text of R records with T numbers, held against a layout.

    All places are those in the padded text.
    """

    def __init__(self, text: bytes, layout: RecordLayout) -> None:
        self.text = text
        self.layout = layout
        self.padded = pad(text)
        self.words = words_of(self.padded)
        self.numbers = find_numbers(self.padded)

    def columns(self) -> RecordColumns | None:
        """What the records say, or ``None`` if they are left to the parser."""
        layout, numbers = self.layout, self.numbers
        if not (self.text.startswith(b"{") and self.text.endswith(b"}") and len(numbers.starts)):
            return None
        ends = np.append(self._find(layout.separator) + 1, len(self.text) + PADDING)
        begins = np.append(PADDING, ends[:-1] + len(layout.comma))
        first = np.searchsorted(numbers.starts, begins)
        count = np.searchsorted(numbers.starts, ends) - first
        num_polygon = count - len(layout.gaps)
        has_polygons = layout.opening is not None
        plain = num_polygon >= _SMALLEST_PART if has_polygons else num_polygon == 0
        singles = first[:, None] + np.arange(len(layout.gaps))
        singles[:, layout.num_before :] += num_polygon[:, None]
        # What a damaged record has too few of is looked for somewhere, and not found there.
        singles = singles.clip(0, len(numbers.starts) - 1)
        plain &= self._frames_fit(singles, first, count, begins, ends)
        plain &= self._all_valid(first, count) & self._are_integers(singles)
        start = first + layout.num_before
        stop = start + num_polygon
        plain, breaks = self._find_breaks(start, stop, plain)
        odd = np.flatnonzero(~plain)
        if len(odd) > max(2, _MOST_ODD * len(plain)):
            return None
        others = self._parse(begins[odd], ends[odd])
        inside = self._inside(start[plain], stop[plain])
        if others is None or not self._read_long(singles[plain], inside):
            return None
        return self._columns(singles, start, inside, breaks, plain, others)

    def _parse(self, begins: np.ndarray, ends: np.ndarray) -> RecordColumns | None:
        """The columns of some records, by the parser."""
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        try:
            return columns_of([parse_text(self._text(*span)) for span in spans])
        except (ValueError, RecursionError):
            return None

    def _text(self, begin: int, end: int) -> bytes:
        return self.text[begin - PADDING : end - PADDING]

    def _find(self, pattern: bytes) -> np.ndarray:
        """Where a few characters stand."""
        length = len(self.padded) - len(pattern) + 1
        found = self.padded[:length] == pattern[0]
        for place, character in enumerate(pattern[1:], start=1):
            found &= self.padded[place : place + length] == character
        return np.flatnonzero(found)

    def _between(self, begins: np.ndarray, ends: np.ndarray, pattern: bytes) -> np.ndarray:
        """Whether the pattern is all that stands from ``begins`` to ``ends``, bool."""
        fits = ends - begins == len(pattern)
        if len(pattern) < WORD:
            mask = np.uint64(256 ** len(pattern) - 1)
            return fits & ((self.words[begins] & mask) == int.from_bytes(pattern, "little"))
        last = len(pattern) - WORD
        begins = np.minimum(begins, len(self.words) - 1 - last)  # where it does not fit
        for shift in (*range(0, last, WORD), last):
            word = int.from_bytes(pattern[shift : shift + WORD], "little")
            fits &= self.words[begins + shift] == np.uint64(word)
        return fits

    def _frames_fit(
        self,
        singles: np.ndarray,
        first: np.ndarray,
        count: np.ndarray,
        begins: np.ndarray,
        ends: np.ndarray,
    ) -> np.ndarray:
        """Whether the text around the single numbers is the layout's, ``(R,)`` bool."""
        layout, numbers = self.layout, self.numbers
        final = (first + count - 1).clip(0)
        fit = self._between(numbers.ends[final], ends, layout.tail)
        before = begins
        for place, gap in enumerate(layout.gaps):
            if place == layout.num_before:  # the polygons' last number
                before = numbers.ends[(singles[:, place] - 1).clip(0)]
            fit &= self._between(before, numbers.starts[singles[:, place]], gap)
            before = numbers.ends[singles[:, place]]
        if layout.opening is not None:
            place = layout.num_before
            before = begins if place == 0 else numbers.ends[singles[:, place - 1]]
            start = (first + place).clip(0, len(numbers.starts) - 1)
            fit &= self._between(before, numbers.starts[start], layout.opening)
        return fit

    def _all_valid(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Whether all numbers of a record are as JSON writes them, ``(R,)`` bool."""
        wrong = np.flatnonzero(~self.numbers.is_valid)
        return np.searchsorted(wrong, first) == np.searchsorted(wrong, first + count)

    def _are_integers(self, singles: np.ndarray) -> np.ndarray:
        """Whether ids and flags are, ``(R,)`` bool."""
        fields = self.layout.fields
        places = [place for key in _FIELDS if key != "bbox" for place in fields[key]]
        numbers = self.numbers
        is_integer = ~numbers.has_point & (numbers.ends - numbers.starts <= _EXACT_DIGITS)
        return is_integer[singles[:, places]].all(axis=1)

    def _find_breaks(
        self, start: np.ndarray, stop: np.ndarray, plain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which records' polygons are sound, and the numbers after which a part ends."""
        layout, numbers = self.layout, self.numbers
        if layout.opening is None:
            return plain, np.zeros(0, dtype=np.int64)
        ends, starts = numbers.ends[:-1], numbers.starts[1:]
        is_comma = starts - ends == len(layout.comma)
        for shift, character in enumerate(layout.comma):
            is_comma &= self.padded[ends + shift] == character
        rest = np.flatnonzero(~is_comma)
        is_break = self._between(ends[rest], starts[rest], layout.part_break)
        wrong = rest[~is_break]
        sound = np.searchsorted(wrong, start) == np.searchsorted(wrong, stop - 1)
        return plain & sound, rest[is_break]

    def _read_long(self, singles: np.ndarray, inside: np.ndarray) -> bool:
        """Reads the long ones among the wanted numbers, if they are few."""
        numbers = self.numbers
        if not numbers.is_long.any():
            return True
        places = [place for places in self.layout.fields.values() for place in places]
        wanted = inside.copy()
        wanted[singles[:, places]] = True
        long = np.flatnonzero(wanted & numbers.is_long)
        if len(long) > max(2, _MOST_LONG * len(wanted)):
            return False
        for place in long.tolist():
            text = self._text(numbers.starts[place], numbers.ends[place])
            numbers.values[place] = float(text)
        return True

    def _inside(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Which numbers are in one of the ranges, ``(T,)`` bool."""
        steps = np.zeros(len(self.numbers.starts) + 1, dtype=np.int8)
        if self.layout.opening is not None:
            steps[start], steps[stop] = 1, -1
        return np.cumsum(steps[:-1], dtype=np.int8).view(bool)

    def _columns(
        self,
        singles: np.ndarray,
        start: np.ndarray,
        inside: np.ndarray,
        breaks: np.ndarray,
        plain: np.ndarray,
        others: RecordColumns,
    ) -> RecordColumns | None:
        """The columns of the plain records together with ``others``, which are not.

        ``None`` if polygons have parts that are none.
        """
        values, fields, odd = self.numbers.values, self.layout.fields, np.flatnonzero(~plain)

        def integers(key: str) -> np.ndarray:
            if not fields[key]:
                return np.zeros(len(plain), dtype=np.int64)
            return values[singles[:, fields[key][0]]].astype(np.int64)

        keys = ("id", "image_id", "category_id", "iscrowd")
        columns = [*map(integers, keys), values[singles[:, fields["bbox"]]]]
        theirs = (others.ids, others.image_ids, others.category_ids, others.crowd, others.boxes)
        for column, other in zip(columns, theirs, strict=True):
            column[odd] = other
        rows, start = np.flatnonzero(plain), start[plain]
        if self.layout.opening is None:
            rows = start = np.zeros(0, dtype=np.int64)
        # Counted among the numbers of polygons only.
        rank = np.cumsum(inside) - 1
        begins = rank[start]
        parts = rank[breaks[inside[breaks] & inside[breaks + 1]] + 1]
        parts = np.sort(np.concatenate([begins, parts]))
        coordinates = values[inside]
        lengths = np.diff(parts, append=len(coordinates))
        if not can_be_parts(lengths):
            return None
        rows = rows[np.searchsorted(begins, parts, side="right") - 1]
        theirs = dataclasses.replace(others.parts, rows=odd[others.parts.rows])
        return RecordColumns(
            *columns,
            join_parts([make_parts(coordinates, lengths, rows), theirs]),
            [(int(odd[row]), segmentation) for row, segmentation in others.runs],
        )
