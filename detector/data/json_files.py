"""Reads large JSON files."""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from detector.data.threads import num_threads

try:
    import orjson  # an extra of the package
except ImportError:
    orjson = None

Piece = TypeVar("Piece")

_PIECE_BYTES = 1 << 19  # parsed together; what they become stays in the processor's cache
_BETWEEN_RECORDS = re.compile(rb"\}\s*,\s*\{")
_AFTER_RECORDS = re.compile(rb"\}\s*\](?=\s*[,}])")
_MAX_ENDS = 4  # places tried for the end of a list
_MAX_BOUNDARIES = 20  # places tried for the end of a piece


class NotRecords(Exception):
    """The list is not one of plain records, and has to be parsed with the rest of its file."""


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    return parse_json(file.read_bytes(), file)


def parse_json(content: bytes, file: Path) -> Any:
    """Like :func:`read_json` for a file's content; ``file`` is for messages."""
    try:
        return parse_text(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: not a JSON file ({error}); check that it was copied whole"
        ) from error


def read_content(file: Path) -> memoryview:
    """A large file's bytes.

    In an array of numpy's, whose memory comes in large pages: fetching it in small ones takes
    longer than reading the file.
    """
    return memoryview(np.fromfile(file, dtype=np.uint8))


def find_records(content: memoryview | bytes, key: str) -> tuple[Any, int, int]:
    """A JSON object without one of its lists, and where the records of that list stand.

    Args:
        content: of the file.
        key: of the list.

    Returns:
        The object, with an empty list for ``key``, and from where to where
        :func:`read_records` finds the list's records.

    Raises:
        NotRecords: the list cannot be found.
    """
    name = json.dumps(key).encode()
    if len(list(islice(re.finditer(re.escape(name), content), 2))) != 1:
        raise NotRecords
    begin = re.compile(re.escape(name) + rb"\s*:\s*\[\s*(?=\{)").search(content)
    if begin is None:
        raise NotRecords
    ends = _AFTER_RECORDS.finditer(content, begin.end())
    for end, _ in zip(ends, range(_MAX_ENDS), strict=False):
        try:
            rest = parse_text(b"".join([content[: begin.end()], b"0", content[end.end() - 1 :]]))
        except (ValueError, RecursionError):
            continue
        if isinstance(rest, dict) and rest.get(key) == [0]:  # of equal keys the last one counts
            return rest | {key: []}, begin.end(), end.start() + 1
    raise NotRecords


def read_records(
    content: memoryview | bytes,
    start: int,
    stop: int,
    scan: Callable[[bytes], Piece | None] | None = None,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[list[Any] | Piece]:
    """The records of a list, piece by piece.

    A tree of all records at once takes ten times the file's size, and most of the time goes into
    fetching it from memory; pieces take neither. The records' own text is not searched for their
    ends but cut where an object ends and another begins; what is cut at a wrong place is no JSON,
    since too few brackets are closed, and is cut at the next.

    Args:
        content: of the file.
        start, stop: see :func:`find_records`.
        scan: tried on the text of each piece before it is parsed; what it gives stands for the
            parsed list. It gives ``None`` for what is no JSON, and may for anything. It runs in
            threads, on the pieces that come next.
        advance: is told the length of each piece when it is done with.

    Raises:
        NotRecords: the list cannot be cut.
    """
    ahead: deque[tuple[Future[Piece | None], int, int]] = deque()
    cut, num_ahead = start, 1  # what the first piece teaches is of use to the others
    with ThreadPoolExecutor(num_threads()) as pool:
        while start < stop:
            while cut < stop and len(ahead) < num_ahead:
                end, following = _next_end(content, cut + _PIECE_BYTES, stop)
                future = pool.submit(scan or _leave, bytes(content[cut:end]))
                ahead.append((future, end, following))
                cut = following
            future, end, planned = ahead.popleft()
            records, following = future.result(), planned
            if records is None:
                records, following = _parse_piece(content, start, end, planned, stop)
            if following != planned:  # it was cut at a wrong place, and so are the next
                ahead.clear()
                cut = following
            yield records
            advance(following - start)
            start, num_ahead = following, 2 * num_threads()


def _next_end(content: memoryview | bytes, place: int, stop: int) -> tuple[int, int]:
    """The end of the first record that may end after ``place``, and where the next begins."""
    between = _BETWEEN_RECORDS.search(content, place, stop) if place < stop else None
    return (stop, stop) if between is None else (between.start() + 1, between.end() - 1)


def _parse_piece(
    content: memoryview | bytes, start: int, end: int, following: int, stop: int
) -> tuple[list[Any], int]:
    """The records from ``start`` to ``end``, or more if that is no end; and where the next begin.

    Raises:
        NotRecords: there is no end.
    """
    for _ in range(_MAX_BOUNDARIES):
        try:
            return parse_text(b"[%b]" % content[start:end]), following
        except (ValueError, RecursionError):
            if following == stop:
                raise NotRecords from None
            end, following = _next_end(content, end, stop)
    raise NotRecords


def _leave(text: bytes) -> None:
    """Leaves every piece to the parser."""


def parse_text(content: bytes) -> Any:
    """What a JSON text says, by ``orjson`` if it is there: it takes half the time.

    What it refuses (NaN, and what is no JSON at all) goes to Python's own parser: the result, or
    the message, is the same with and without it.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    if orjson is not None:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(content)
    return json.loads(content)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pauses the search for cycles, in vain among the millions of lists of a JSON file.

    It takes as long as the parsing itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
