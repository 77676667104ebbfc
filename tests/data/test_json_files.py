"""Large JSON files: cut into pieces they are what Python's parser makes of them whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

import detector.data.json_files as json_files
from detector.data.coco_records import parse_dataset
from detector.data.json_files import NotRecords, find_records, parse_json, read_records

RECORDS = [
    {"id": 1, "bbox": [1, 2.5, 3e-2, 4], "segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0},
    {"id": 2, "segmentation": {"counts": [1, 2], "size": [3, 4]}, "note": "}, {"},
    {"id": 3, "parts": [{"a": 1}, {"b": [{}, {}]}], "note": '"}],"'},
    {"id": 4, "text": "\u00e9\u4e2d", "none": None},
]


@pytest.fixture(autouse=True, params=["orjson", "json"])
def parser(request, monkeypatch):
    """With the faster parser and without."""
    if request.param == "json":
        monkeypatch.setattr(json_files, "orjson", None)
    elif json_files.orjson is None:
        pytest.skip("orjson is not installed")


def split_records(content: bytes, key: str):
    rest, start, stop = find_records(content, key)
    return rest, read_records(content, start, stop)


@pytest.mark.parametrize("piece_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("annotations",)])
def test_pieces_together_are_the_whole(monkeypatch, piece_bytes, indent, order):
    monkeypatch.setattr(json_files, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(json_files, "_MAX_ENDS", 100)  # the records hold many lists of objects
    data = {"images": [{"id": 1}], "annotations": RECORDS * 3, "categories": [{"id": 7}]}
    data = {key: data[key] for key in order}
    rest, pieces = split_records(json.dumps(data, indent=indent).encode(), "annotations")
    found = list(pieces)
    assert [record for piece in found for record in piece] == data["annotations"]
    assert rest == data | {"annotations": []}
    assert len(found) == {1: 12, 40: 12, 1 << 20: 1}[piece_bytes]


@pytest.mark.parametrize(
    "text",
    [
        '{"annotations": []}',
        '{"annotations": [1, 2]}',
        '{"annotations": {}}',
        "[1]",
        '{"a": {"annotations": [{"b": 1}]}}',
        '{"annotations": [{"b": 1}], "annotations": [{"c": 1}]}',
        '{"annotations": [{"b": 1}], "annota\\u0074ions": []}',
        '{"annotations": [{"b": 1}]',
        '{"x": "\\"annotations\\": [{}]"}',
        "",
    ],
)
def test_what_is_no_list_of_records_is_left_to_the_parser(text):
    with pytest.raises(NotRecords):
        list(split_records(text.encode(), "annotations")[1])


def test_damage_inside_a_piece_is_noticed(monkeypatch):
    monkeypatch.setattr(json_files, "_PIECE_BYTES", 10)
    text = json.dumps({"annotations": RECORDS[:2] * 3}).replace('"counts"', "counts", 1)
    with pytest.raises(NotRecords):
        list(split_records(text.encode(), "annotations")[1])


def test_numbers_that_are_none_are_read(tmp_path):
    assert np.isnan(parse_json(b'{"a": NaN}', tmp_path)["a"])
    for content in (b"{", b"\xff", b'"' * 3, b"[" * 100_000, b"1" * 5000):
        with pytest.raises(ValueError, match=r"a\.json: not a JSON file .*copied whole"):
            parse_json(content, tmp_path / "a.json")


def test_many_at_once_are_as_one_by_one(coco_folder, monkeypatch):
    """Plain records, and each kind of oddness between them, give the same columns and problems."""
    plain = coco_folder.data["annotations"]
    odd = [
        {"bbox": [5, 6, 10, 0]}, {"bbox": [5, 6, 10]}, {"bbox": [5, 6, 99, 9]},
        {"bbox": [5, 6, "1", 2]},
        {"bbox": [5, 6, float("nan"), 2]}, {"bbox": [True, 6, 2, 2]}, {"bbox": None},
        {"bbox": [-0.5, 6, 2, 2], "segmentation": []}, {"image_id": 99}, {"image_id": "1"},
        {"category_id": 5}, {"iscrowd": 2}, {"iscrowd": True}, {"segmentation": [[1, 2, 3]]},
        {"segmentation": [[1, 2, 3, 4, 5]]}, {"segmentation": [[1, 2, 3, 4, "5", 6]]},
        {"segmentation": [5]}, {"segmentation": 5},
        {"segmentation": {"counts": "x", "size": [1, 1]}},
        {"segmentation": None}, {"segmentation": [[1, 1, 2, 2, 3, 3]]}, {"id": 11}, {"id": "a"},
        {"id": 2**70}, {"id": 77},
    ]  # fmt: skip
    records = [dict(plain[0], id=100 + n) | change for n, change in enumerate(odd)]
    for extra in [*([record] for record in records), records]:
        data = dict(coco_folder.data, annotations=[*plain, *extra])
        bulk = parse_dataset(data, coco_folder.json, coco_folder.images)
        with monkeypatch.context() as patch:
            patch.setattr("detector.data.coco_records.add_plain_records", lambda *_: False)
            single = parse_dataset(data, coco_folder.json, coco_folder.images)
        for name in ("annotation_ids", "boxes", "labels", "crowd", "ring_offsets", "vertices"):
            one, other = getattr(bulk, name), getattr(single, name)
            assert np.array_equal(one, other) and one.dtype == other.dtype, (name, extra)
        assert bulk.skipped == single.skipped


@pytest.mark.parametrize(
    "change",
    [
        {}, {"id": 1}, {"id": "1"}, {"id": 2**70}, {"id": True}, {"width": 0}, {"height": 2**31},
        {"width": 3.5}, {"file_name": ""}, {"file_name": None}, {"file_name": "a\0b"},
        {"file_name": "\ud800"}, {"width": None},
    ],
)  # fmt: skip
def test_many_images_at_once_are_as_one_by_one(coco_folder, monkeypatch, change):
    image = dict(coco_folder.data["images"][0], id=50) | change
    data = coco_folder.data | {"images": [*coco_folder.data["images"], image]}
    bulk = parse_dataset(data, coco_folder.json, coco_folder.images)
    monkeypatch.setattr("detector.data.coco_records.add_plain_images", lambda *_: False)
    single = parse_dataset(data, coco_folder.json, coco_folder.images)
    for name in ("image_ids", "widths", "heights", "file_name_bytes", "annotation_offsets"):
        assert np.array_equal(getattr(bulk, name), getattr(single, name)), name
    assert bulk.skipped == single.skipped and bool(bulk.skipped) == bool(change)
