"""What reading says of how far it has come."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import detector.data.json_files as json_files
from detector import cli
from detector.data.image_sizes import read_image_sizes
from detector.data.slow_work import show_slow_work, slow_work


@pytest.fixture
def told():
    """``[what, total, unit, parts done]`` of all slow work."""
    works: list[list] = []

    @contextmanager
    def display(what: str, total: int, unit: str):
        works.append([what, total, unit, []])
        yield works[-1][3].append

    show_slow_work(display)
    yield works
    show_slow_work(None)


@pytest.mark.parametrize("scanned", [True, False])
def test_reading_tells_of_every_byte_and_every_image(coco_folder, told, monkeypatch, scanned):
    plain = coco_folder.data["annotations"][0]
    coco_folder.data["annotations"] += [plain | {"id": 100 + n} for n in range(50)]
    coco_folder.write()
    monkeypatch.setattr(json_files, "_PIECE_BYTES", 1000)
    if not scanned:
        monkeypatch.setattr("detector.data.coco.RecordScanner", lambda: lambda text: None)
    coco_folder.read()
    (what, total, unit, parts), (_, num_images, files, checked) = told
    assert what == f"reading {coco_folder.json.name}" and unit == "bytes"
    assert total == coco_folder.json.stat().st_size == sum(parts) and len(parts) > 5
    assert (num_images, files) == (3, "files") and checked == [1, 1, 1]


def test_a_second_start_has_nothing_slow(coco_folder, told):
    coco_folder.read()
    told.clear()
    coco_folder.read()
    assert told == []


def test_sizes_are_told_image_by_image(coco_folder, told):
    paths = [coco_folder.images / name for name in ("1.png", "7.png", "gone.png")]
    assert read_image_sizes(paths)[0] == (40, 30)
    assert told == [["reading sizes of images", 3, "files", [1, 1, 1]]]


def test_without_a_display_work_goes_on():
    with slow_work("waiting", 2, "files") as advance:
        assert advance(1) is None


@pytest.mark.parametrize(("rank", "shows"), [(None, True), ("0", True), ("1", False)])
def test_the_command_line_shows_it_on_the_first_rank(monkeypatch, rank, shows):
    displays = []
    tool = SimpleNamespace(describe=lambda config: displays.append(slow_work("w", 1, "files")))
    monkeypatch.setitem(cli.TOOLS, "describe", ("a_tool", ""))
    monkeypatch.setitem(sys.modules, "a_tool", tool)
    monkeypatch.setattr(sys, "argv", ["describe.py"])
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(cli, "_check_alone", lambda name: None)
    show_slow_work(None)
    try:
        cli.run_tool("describe")
    finally:
        show_slow_work(None)
    assert (displays[0].func.__name__ == "late_bar") == shows
