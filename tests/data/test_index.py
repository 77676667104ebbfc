"""The index on disk: content-addressed, memory-mapped, picklable."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

import detector.data.coco as coco
from detector.cache import cache_directory
from detector.data.index import AnnotationIndex


def arrays(index: AnnotationIndex) -> dict[str, np.ndarray]:
    values = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def assert_equal(one: AnnotationIndex, other: AnnotationIndex) -> None:
    for name, value in arrays(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)
    assert one.category_names == other.category_names
    assert one.skipped == other.skipped


def test_a_second_reading_parses_nothing(coco_folder, monkeypatch):
    first = coco_folder.read()
    monkeypatch.setattr(coco, "parse_dataset", lambda *_: pytest.fail("parsed again"))
    assert_equal(coco_folder.read(), first)


def test_the_cache_goes_by_content_not_by_path(coco_folder, monkeypatch):
    first = coco_folder.read()
    moved = coco_folder.root.with_name("moved")
    shutil.move(coco_folder.root, moved)
    monkeypatch.setattr(coco, "parse_dataset", lambda *_: pytest.fail("parsed again"))
    index = coco.read_coco(moved / "annotations.json", moved / "images")
    assert_equal(index, first)
    assert index.path(0) == moved / "images" / "1.png"


def test_a_changed_file_is_read_anew(coco_folder):
    coco_folder.read()
    coco_folder.data["annotations"][0]["bbox"] = [6, 6, 9, 8]
    assert coco_folder.read().boxes[0].tolist() == [6, 6, 15, 14]


def test_damage_is_remembered_with_the_cache(coco_folder):
    coco_folder.data["annotations"][0]["bbox"] = [5, 6, 0, 8]
    first = coco_folder.read("skip")
    with pytest.raises(ValueError, match="annotation 11"):
        coco_folder.read("raise")
    assert_equal(coco_folder.read("skip"), first)


def test_a_half_written_cache_is_not_used(coco_folder):
    first = coco_folder.read()
    (first.directory / "boxes.npy").write_bytes(b"")
    assert_equal(coco_folder.read(), first)


def test_two_processes_that_write_the_same_cache(coco_folder):
    first = coco_folder.read()
    # What the slower of two processes does after reading the same file.
    in_memory = first.keep_images(np.ones(len(first), dtype=bool))
    in_memory.save(first.directory)
    assert [path.name for path in first.directory.parent.iterdir()] == [first.directory.name]
    assert_equal(coco_folder.read(), first)


def test_an_unwritable_cache_costs_time_only(coco_folder, tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    expected = coco_folder.read()
    monkeypatch.setenv("DETECTOR_CACHE", str(blocked))
    assert_equal(coco_folder.read(), expected)
    assert "DETECTOR_CACHE" in caplog.text


def test_a_dataset_folder_is_not_written_to(coco_folder):
    coco_folder.write()
    before = sorted(coco_folder.root.rglob("*"))
    coco_folder.read()
    assert sorted(coco_folder.root.rglob("*")) == before


def test_pickling_sends_the_place_not_the_arrays(coco_folder):
    index = coco_folder.read()
    data = pickle.dumps(index)
    assert len(data) < 1000
    assert_equal(pickle.loads(data), index)
    partial = index.keep_images(np.array([True, False, True]))
    assert_equal(pickle.loads(pickle.dumps(partial)), partial)


def test_keeping_some_images(coco_folder):
    index = coco_folder.read()
    kept = index.keep_images(np.array([False, True, True]))
    assert kept.image_ids.tolist() == [7, 4]
    assert [kept.file_name(i) for i in range(2)] == ["7.png", "4.png"]
    assert kept.annotation_ids.tolist() == [15, 19]
    ring = slice(*index.vertex_offsets[index.ring_offsets[2:4]])
    np.testing.assert_array_equal(kept.vertices[: kept.vertex_offsets[1]], index.vertices[ring])
    assert_equal(index.keep_images(np.ones(3, dtype=bool)), index)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("DETECTOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "detector"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "detector"
