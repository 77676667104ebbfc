"""Records read from their text are those that a JSON parser finds, or are left to it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detector.data.json_files as json_files
from detector.data.coco import read_coco
from detector.data.coco_bulk import columns_of
from detector.data.coco_records import parse_dataset
from detector.data.coco_text import RecordScanner, learn_layout

COMPACT, SPACED = (",", ":"), (", ", ": ")
KEY_ORDERS = {
    "COCO's": ["segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id"],
    "polygons last": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"],
    "polygons inside": ["id", "bbox", "segmentation", "image_id", "category_id"],
    "boxes": ["id", "image_id", "category_id", "iscrowd", "bbox"],
    "more than is wanted": [
        "note", "id", "scores", "image_id", "category_id", "flag", "segmentation", "bbox",
    ],
}  # fmt: skip
ARRAYS = (
    *("annotation_ids", "annotation_offsets", "boxes", "labels", "crowd"),
    *("ring_offsets", "vertex_offsets", "vertices"),
)
RUNS = {"counts": [3, 5, 4], "size": [3, 4]}


def make_records(keys: list[str], count: int = 60, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    return [_record(keys, number, draw) for number in range(count)]


def _record(keys: list[str], identifier: int, draw: random.Random) -> dict:
    def numbers(count: int) -> list[float]:
        return [round(draw.uniform(0, 640), draw.choice([0, 1, 2, 2, 2])) for _ in range(count)]

    parts = [numbers(2 * draw.randrange(3, 9)) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    values = {
        "id": identifier + 900_100_000_000 * (identifier % 7 == 0),
        "image_id": draw.randrange(1, 600_000),
        "category_id": draw.randrange(1, 90),
        "iscrowd": 0,
        "area": draw.uniform(0, 1e5),
        "bbox": numbers(4),
        "segmentation": parts,
        "note": 'so-called "thing" / part, [a]',
        "scores": [*numbers(1), 3],
        "flag": None,
    }
    return {key: values[key] for key in keys}


def as_text(records: list, separators: tuple[str, str] = COMPACT) -> bytes:
    return json.dumps(records, separators=separators)[1:-1].encode()


def check_same(found, records: list[dict]) -> None:
    """The scanned columns are those of the parsed records, bit for bit."""
    expected = columns_of(records)
    for name in ("ids", "image_ids", "category_ids", "crowd", "boxes"):
        one, other = getattr(found, name), getattr(expected, name)
        assert np.array_equal(one, other) and one.dtype == other.dtype, name
    assert found.runs == expected.runs
    # The parts of one record keep their order; those of odd records come last.
    parts = np.split(found.parts.vertices, np.cumsum(found.parts.lengths))
    assert len(parts.pop()) == 0
    for row, record in enumerate(records):
        segmentation = record.get("segmentation")
        polygons = segmentation if isinstance(segmentation, list) else []
        mine = [parts[part] for part in np.flatnonzero(found.parts.rows == row)]
        for ring, part in zip(mine, polygons, strict=True):
            theirs = np.array(part, dtype=np.float64).reshape(-1, 2)
            theirs[(theirs >= 1e30).any(axis=1)] = 0
            theirs = theirs.astype(np.float32)
            turned = theirs[::-1]  # where its area is negative
            assert np.array_equal(ring, theirs) or np.array_equal(ring, turned)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("order", KEY_ORDERS)
def test_scanned_records_are_the_parsed_ones(order, separators, monkeypatch):
    records = make_records(KEY_ORDERS[order])
    text = as_text(records, separators)
    layout = learn_layout(text)
    assert layout is not None and (layout.opening is None) == (order == "boxes")
    # Not one of them goes to the parser.
    monkeypatch.setattr("detector.data.coco_text._TRIED_RECORDS", 1)
    scanner = RecordScanner()
    scanner(text)
    monkeypatch.setattr("detector.data.coco_text.parse_text", _refuse)
    check_same(scanner(text).columns, records)


def _refuse(text: bytes) -> None:
    raise AssertionError(f"parsed: {text!r}")


ODD = [
    {"segmentation": RUNS, "iscrowd": 1}, {"segmentation": []}, {"segmentation": None},
    {"bbox": [1e-7, 2, 3, 4]}, {"bbox": [-1, 2, 3, 4.5]}, {"area": 1e30}, {"area": -0.5},
    {"bbox": [1 / 3, 2 / 3, 1.1, 2.2]}, {"segmentation": [[1, 2, 3, 4, 5.123456789012345, 6]]},
    {"segmentation": [[1.5, 2, 3, 4, 5, 1e-9], [1, 2, 3, 4, 5, 6]]}, {"area": 12345.678901234567},
    {"attributes": {"occluded": False}}, {"id": 123_456_789_012_345}, {"id": 2**62}, {"extra": 3},
]  # fmt: skip


@pytest.mark.parametrize("change", ODD, ids=str)
@pytest.mark.parametrize("place", [0, 7, 59])
def test_an_odd_record_between_plain_ones_is_parsed(change, place):
    records = make_records(KEY_ORDERS["COCO's"])
    records[place] |= change
    text = as_text(records)
    found = RecordScanner()(text)
    check_same(found.columns, records)
    assert found.parse() == records and len(found) == 60


@pytest.mark.parametrize(
    "change",
    [
        {"id": "5"}, {"id": True}, {"id": 2**64}, {"id": 3.0}, {"bbox": [1, 2, 3]}, {"bbox": 5},
        {"bbox": [1, "2", 3, 4]}, {"image_id": None}, {"iscrowd": False}, {"segmentation": [3]},
        {"segmentation": [[1, 2, None, 4, 5, 6]]}, {"category_id": 7.5},
        {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
        {"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4], [1, 2]]},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_other_types_is_left_to_the_parser(change):
    records = make_records(KEY_ORDERS["COCO's"])
    records[30] |= change
    assert RecordScanner()(as_text(records)) is None


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"{", b"3", b"null", b'{"id":1}', b'"},{"', b'{"id":1},{"id":2}',
        b'{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4]},5',
        b'{\n "id": 1,\n "bbox": [1,2,3,4]\n}',
    ],
)  # fmt: skip
def test_what_is_written_in_no_known_way_is_left_to_the_parser(text):
    assert RecordScanner()(text) is None


ODD_ALIKE = [
    {"segmentation": value}
    for value in (0, "", False, {}, 5, [[]], [[], []], [[1, 2, 3, 4, 5, 6], []], [3, 4], RUNS)
] + [
    {"id": [5]}, {"image_id": [1]}, {"category_id": [3]}, {"category_id": {"id": 3}},
    {"iscrowd": [0]}, {"iscrowd": None}, {"bbox": [1, 2, 3, 4, None]}, {"bbox": ["x", 1, 2, 3, 4]},
    {"bbox": [[1, 2, 3, 4]]}, {"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}},
]  # fmt: skip


@pytest.mark.parametrize("order", ["COCO's", "polygons last"])
@pytest.mark.parametrize("change", ODD_ALIKE, ids=str)
def test_records_that_are_all_odd_alike_are_left_to_the_parser(change, order):
    records = [record | change for record in make_records(KEY_ORDERS[order])]
    assert RecordScanner()(as_text(records)) is None
    records[1:] = make_records(KEY_ORDERS[order])[1:]
    found = RecordScanner()(as_text(records))
    if found is not None:  # the first one was parsed
        check_same(found.columns, records)


def test_the_sign_of_a_zero_is_no_text_around_a_number():
    records = make_records(KEY_ORDERS["COCO's"])
    for number, record in enumerate(records):
        record["bbox"][0] = -0.0 if number < 40 else -5.5
        record["segmentation"][0][0] = -0.0 if number < 40 else -7.5
    assert RecordScanner()(as_text(records)) is None


@pytest.mark.parametrize("extra", ['"id":7', '"bbox":[7,7,7,7]', '"note":null'])
def test_a_key_that_comes_twice_is_left_to_the_parser(extra):
    record = '{"bbox":null,"id":7,"note":null,"image_id":7,"category_id":7,"bbox":[7,7,7,7],%s}'
    assert RecordScanner()((",".join([record % extra] * 9)).encode()) is None


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize(
    "extra",
    [{"attributes": {"occluded": False, "rotation": 4.5}}, {"more": [{"a": [1, 2]}, [], None]}],
    ids=str,
)
def test_other_objects_in_records_do_not_slow_them_down(extra, separators, monkeypatch):
    records = [record | extra for record in make_records(KEY_ORDERS["COCO's"])]
    monkeypatch.setattr("detector.data.coco_text.parse_text", _refuse)
    check_same(RecordScanner()(as_text(records, separators)).columns, records)


def test_mostly_odd_records_are_left_to_the_parser_and_so_is_the_rest_of_the_file(monkeypatch):
    plain = make_records(KEY_ORDERS["COCO's"])
    odd = [record | {"segmentation": RUNS} for record in plain[:40]] + plain[40:]
    scanner = RecordScanner()
    assert scanner(as_text(plain)) is not None
    for _ in range(3):
        assert scanner(as_text(odd)) is None
    assert scanner(as_text(plain)) is None


PIECE = as_text(make_records(KEY_ORDERS["COCO's"], 12, seed=3))
SNIPPETS = [
    b"", b"0", b"9", b".", b",", b"-", b"e", b"]", b"[", b"{", b"}", b'"', b" ", b"\n", b"],[",
    b"},{", b"00", b"\x00", b"\xff", b"]],", b"1.5.5", b',"id":3', b"null", b"9" * 20,
]  # fmt: skip


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(PIECE)), st.integers(0, 6), st.sampled_from(SNIPPETS)),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_damaged_text_is_never_taken_for_something_else(edits):
    text = bytearray(PIECE)
    for place, length, snippet in edits:
        text[place : place + length] = snippet
    scanner = RecordScanner()
    scanner(PIECE)
    found = scanner(bytes(text))
    if found is not None:
        check_same(found.columns, json.loads(b"[%b]" % bytes(text)))


CHANGES = st.sampled_from([*ODD, *ODD_ALIKE, {"bbox": [-0.0, 3, 5, 6]}, {"iscrowd": 1}, {"id": 1}])


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_file_gives_what_parsing_the_whole_gives(data):
    """Records that are odd alike, or some of them; other keys, orders, spaces and pieces."""
    keys = data.draw(st.permutations(KEY_ORDERS[data.draw(st.sampled_from(list(KEY_ORDERS)))]))
    records = make_records(keys, data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99)))
    alike = data.draw(st.lists(CHANGES, max_size=2))
    some = data.draw(st.lists(st.tuples(st.integers(0, 39), CHANGES), max_size=3))
    for record in records:
        for change in alike:
            record |= change
    for place, change in some:
        records[place % len(records)] |= change
    whole = {
        "images": [{"id": n, "file_name": f"{n}", "width": 640, "height": 640} for n in range(9)],
        "annotations": [record | {"image_id": 1, "category_id": 3} for record in records]
        if data.draw(st.booleans())
        else records,
        "categories": [{"id": 3, "name": "cat"}],
    }
    order = data.draw(st.permutations(list(whole)))
    separators = data.draw(st.sampled_from([COMPACT, SPACED, (" ,", " : ")]))
    text = json.dumps({key: whole[key] for key in order}, separators=separators).encode()

    def outcome(*pieces) -> list | str:
        try:
            index = parse_dataset(*pieces[:1], Path("f.json"), Path(), None, *pieces[1:])
        except ValueError as error:
            return str(error)
        return [index.skipped, *(getattr(index, name).tobytes() for name in ARRAYS)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_PIECE_BYTES", data.draw(st.sampled_from([300, 3000, 1 << 19])))
        rest, start, stop = json_files.find_records(text, "annotations")
        scanned = outcome(rest, json_files.read_records(text, start, stop, RecordScanner()))
    assert scanned == outcome(json.loads(text))


@pytest.mark.parametrize("piece_bytes", [200, 2000, 1 << 19])
def test_the_index_is_the_same_however_records_are_read(coco_folder, monkeypatch, piece_bytes):
    plain = coco_folder.data["annotations"][0]
    coco_folder.data["annotations"] += [
        plain | {"id": 100 + n} | ({"iscrowd": 0, "segmentation": None} if n % 5 == 0 else {})
        for n in range(40)
    ]
    coco_folder.data["annotations"] += [plain | {"id": 100}, plain | {"id": 500, "image_id": 99}]
    coco_folder.data["annotations"].append(plain | {"id": 501, "bbox": [5, 6, 0, 8]})
    coco_folder.write()
    monkeypatch.setattr(json_files, "_PIECE_BYTES", piece_bytes)

    def read(cache: str):
        monkeypatch.setenv("DETECTOR_CACHE", str(coco_folder.root / cache))
        return read_coco(coco_folder.json, coco_folder.images, "skip")

    scanned = read("scanned")
    monkeypatch.setattr("detector.data.coco.RecordScanner", lambda: lambda text: None)
    parsed = read("parsed")
    for name in ARRAYS:
        one, other = getattr(scanned, name), getattr(parsed, name)
        assert np.array_equal(one, other) and one.dtype == other.dtype, name
    assert scanned.skipped == parsed.skipped and len(scanned.skipped) == 3
